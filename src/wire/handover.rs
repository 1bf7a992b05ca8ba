//! What a leader says to the node that is to lead after it, and what that answers: one question and one answer on a
//! connection whose hello wants [`super::Want::Handover`]. Who asks, and on which line, is in the hello.
//!
//! | size | field of a question |
//! | --- | --- |
//! | 1 | what is asked: see [`Step`] |
//! | 8 | LSN where the asker's log ends, 0 before it is known |
//!
//! | size | field of an answer |
//! | --- | --- |
//! | 1 | how the node stands to it: see [`Stand`] |
//! | 1 | 1: its command `on_promote` is done with, or there is none |
//! | 4+n | why, or what is under way; at most [`super::REASON_MAX`] bytes |

use super::REASON_MAX;
use super::hello::{clip, text};
use crate::codec::{DecodeError, Put, Reader};
use crate::position::Lsn;

/// Most bytes of a question.
pub(super) const HANDOVER_BYTES: usize = 9;
/// Most bytes of an answer.
pub(super) const HEIR_BYTES: usize = 2 + 4 + REASON_MAX;

/// What a leader asks the node that is to lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Step {
    /// Could it lead?
    Could = 0,
    /// Would it lead from here on? The log is at its end.
    Ready = 1,
    /// It leads from here on: the asker never will again on this line.
    Lead = 2,
}

impl Step {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Could, Self::Ready, Self::Lead];
}

/// How the node that was asked stands to the question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stand {
    /// No, for the reason that is given.
    No = 0,
    /// Yes.
    Yes = 1,
    /// It is about to lead.
    Begins = 2,
    /// It leads on a line that goes on from the asker's, and serves.
    Leads = 3,
}

impl Stand {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::No, Self::Yes, Self::Begins, Self::Leads];
}

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handover {
    /// What is asked.
    pub step: Step,
    /// Where the asker's log ends; zero before that is known.
    pub at: Lsn,
}

/// The answer of the node that is to lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heir {
    /// How it stands.
    pub stand: Stand,
    /// It leads, and its command `on_promote` is done with.
    pub settled: bool,
    /// In words.
    pub reason: String,
}

impl Heir {
    /// It will not, for this reason.
    #[must_use]
    pub fn no(reason: impl Into<String>) -> Self {
        Self { stand: Stand::No, settled: false, reason: reason.into() }
    }

    /// It stands so.
    #[must_use]
    pub fn stands(stand: Stand) -> Self {
        Self { stand, settled: false, reason: String::new() }
    }
}

pub(super) fn put_question(h: Handover, out: &mut Vec<u8>) {
    out.put_u8(h.step as u8);
    out.put_u64(h.at.0);
}

pub(super) fn take_question(r: &mut Reader<'_>) -> Result<Handover, DecodeError> {
    let step = r.u8("step of a handover")?;
    let known = Step::ALL.into_iter().find(|s| *s as u8 == step);
    let step = known.ok_or(DecodeError::Invalid { what: "step of a handover", value: u64::from(step) })?;
    Ok(Handover { step, at: Lsn(r.u64("end of the log")?) })
}

pub(super) fn put_answer(h: &Heir, out: &mut Vec<u8>) {
    out.put_u8(h.stand as u8);
    out.put_u8(u8::from(h.settled));
    out.put_blob(clip(&h.reason, REASON_MAX));
}

pub(super) fn take_answer(r: &mut Reader<'_>) -> Result<Heir, DecodeError> {
    let stand = r.u8("stand of an heir")?;
    let known = Stand::ALL.into_iter().find(|s| *s as u8 == stand);
    let stand = known.ok_or(DecodeError::Invalid { what: "stand of an heir", value: u64::from(stand) })?;
    let settled = match r.u8("settled")? {
        0 => false,
        1 => true,
        v => return Err(DecodeError::Invalid { what: "settled", value: u64::from(v) }),
    };
    Ok(Heir { stand, settled, reason: text(r.blob(REASON_MAX, "reason")?, "reason")? })
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;

    fn round(message: Message) {
        let bytes = message.encode();
        assert_eq!(Message::decode(&bytes), Ok((message, bytes.len())));
    }

    #[test]
    fn every_question_and_answer_comes_back_and_nothing_else_does() {
        for step in Step::ALL {
            round(Message::Handover(Handover { step, at: Lsn(0x0102_0304_0506_0708) }));
        }
        for stand in Stand::ALL {
            for settled in [false, true] {
                round(Message::Heir(Heir { stand, settled, reason: "paused".to_owned() }));
            }
        }
        for bad in [&[3, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 8]] {
            assert!(take_question(&mut Reader::new(bad)).is_err());
        }
        for bad in
            [&[4, 0, 0, 0, 0, 0][..], &[0, 2, 0, 0, 0, 0], &[0, 0, 1, 0, 0, 0, 0xff], &[0, 0, 0, 4, 1, 0]]
        {
            assert!(take_answer(&mut Reader::new(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_tables() {
        let mut out = Vec::new();
        put_question(Handover { step: Step::Lead, at: Lsn(0x0A0B) }, &mut out);
        assert_eq!(out, [2, 0x0B, 0x0A, 0, 0, 0, 0, 0, 0]);
        out.clear();
        put_answer(&Heir { stand: Stand::Leads, settled: true, reason: "ok".to_owned() }, &mut out);
        assert_eq!(out, [3, 1, 2, 0, 0, 0, b'o', b'k']);
        out.clear();
        put_answer(&Heir::no("x".repeat(5000)), &mut out);
        assert_eq!(out.len(), HEIR_BYTES, "a long reason is cut off");
    }
}
