use super::*;
use proptest::prelude::*;

/// One follower of a case.
#[derive(Clone, Debug)]
struct Row {
    name: String,
    at: Positions,
    words: Vec<String>,
}

impl Row {
    fn candidate(&self) -> Candidate<'_> {
        let is = |w: &str| self.words.iter().any(|x| x == w);
        Candidate {
            name: &self.name,
            attached: !is("away"),
            streaming: !is("away") && !is("catchup"),
            near: !is("far"),
            eligible: !is("never"),
            applies: !is("rests"),
            at: self.at,
        }
    }
}

fn check(file: &str, case: &str) {
    let lines = case.lines().filter(|l| !l.starts_with('#'));
    let (mut policy, mut level, mut rows) = (Policy::default(), Level::Flush, Vec::new());
    let (mut after, mut want) = (false, Vec::new());
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            _ if after => want.push(line.to_owned()),
            ["=>"] => after = true,
            ["policy", ..] => policy = line.strip_prefix("policy").unwrap().parse().expect("policy"),
            ["level", word] => level = *Level::ALL.iter().find(|l| l.word() == word).expect("level"),
            [name, write, flush, apply, ref rest @ ..] => rows.push(Row {
                name: name.to_owned(),
                at: Positions {
                    write: Lsn(write.parse().expect("write")),
                    flush: Lsn(flush.parse().expect("flush")),
                    apply: Lsn(apply.parse().expect("apply")),
                },
                words: rest.iter().map(|w| (*w).to_owned()).collect(),
            }),
            _ => panic!("{file}: '{line}'"),
        }
    }
    let candidates: Vec<_> = rows.iter().map(Row::candidate).collect();
    let decision = decide(&policy, level, &candidates);
    let mut got: Vec<String> = candidates
        .iter()
        .zip(&decision.members)
        .map(|(c, (state, rank))| format!("{} {} {rank}", c.name, state.word()))
        .collect();
    got.push(decision.confirmed.map_or("missing".to_owned(), |l| format!("confirmed {}", l.0)));
    assert_eq!(got, want, "{file}:\n{case}");
}

#[test]
fn decisions_are_those_of_the_data_files() {
    for (file, text) in [
        ("first.txt", include_str!("../../tests/fixtures/quorum/first.txt")),
        ("any.txt", include_str!("../../tests/fixtures/quorum/any.txt")),
        ("levels.txt", include_str!("../../tests/fixtures/quorum/levels.txt")),
    ] {
        text.split("\n\n").filter(|c| c.contains("policy")).for_each(|case| check(file, case));
    }
}

#[test]
fn the_grammar_is_that_of_the_data_file() {
    for line in
        include_str!("../../tests/fixtures/quorum/grammar.txt").lines().filter(|l| !l.starts_with('#'))
    {
        if let Some((text, part)) = line.split_once(" =! ") {
            let error = text.parse::<Policy>().expect_err(text).to_string();
            assert!(error.contains(part) && error.contains("write it like"), "{text}: {error}");
            continue;
        }
        let (text, form) = line.split_once(" =>").expect("a case");
        let policy: Policy = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(policy.to_string(), form.trim(), "{text}");
    }
}

#[test]
fn a_list_that_can_never_be_satisfied_is_known_as_such() {
    for (text, impossible) in [
        ("FIRST 3 (a, b)", true),
        ("ANY 2 (a, A)", true),
        ("ANY 2 (a, b)", false),
        ("ANY 9 (*)", false),
        ("", false),
    ] {
        assert_eq!(text.parse::<Policy>().unwrap().impossible(), impossible, "{text}");
    }
}

#[test]
fn without_a_policy_all_that_are_attached_have_to_confirm() {
    let row = |name: &str, at: u64, words: &[&str]| Row {
        name: name.to_owned(),
        at: Positions { write: Lsn(at), flush: Lsn(at), apply: Lsn(at) },
        words: words.iter().map(|w| (*w).to_owned()).collect(),
    };
    let all = |rows: &[Row], level| decide_all(level, &rows.iter().map(Row::candidate).collect::<Vec<_>>());
    let mut rows = vec![row("a", 10, &[]), row("b", 4, &["catchup", "far"]), row("c", 0, &["away"])];
    assert_eq!(all(&rows, Level::Flush), Some(Lsn(4)), "one that is behind is attached too");
    rows[1].words = vec!["rests".to_owned()];
    assert_eq!(all(&rows, Level::Apply), Some(Lsn::ZERO));
    assert_eq!(all(&rows[2..], Level::Flush), None);
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let word = prop::sample::select(vec!["away", "catchup", "far", "never", "rests"]);
    let row = ("[a-e]", 0u64..50, 0u64..50, 0u64..50, prop::collection::vec(word, 0..2));
    prop::collection::vec(row, 0..7).prop_map(|rows| {
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|(name, a, b, c, words)| Row {
                name,
                at: Positions { write: Lsn(a + b + c), flush: Lsn(a + b), apply: Lsn(a) },
                words: words.into_iter().map(str::to_owned).collect(),
            })
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows.dedup_by(|a, b| a.name == b.name);
        rows
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let names = prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d", "*"]), 1..5);
    (any::<bool>(), 1usize..5, names).prop_map(|(any, count, names)| Policy {
        method: if any { Method::Any } else { Method::First },
        count,
        names: names.into_iter().map(str::to_owned).collect(),
    })
}

proptest! {
    /// What is confirmed is held, at that level, by as many followers of the list as were asked for.
    #[test]
    fn what_is_confirmed_is_held_by_enough(policy in policies(), rows in rows(), at in 0usize..3) {
        let level = Level::ALL[at];
        let candidates: Vec<_> = rows.iter().map(Row::candidate).collect();
        let decision = decide(&policy, level, &candidates);
        let able: Vec<_> = candidates.iter().filter(|c| c.counts(level) && policy.rank(c.name) > 0).collect();
        prop_assert_eq!(decision.present, able.len());
        prop_assert_eq!(decision.satisfied(), able.len() >= policy.count);
        if let Some(lsn) = decision.confirmed {
            let held = able.iter().filter(|c| c.at.at(level) >= lsn).count();
            prop_assert!(held >= policy.count);
            prop_assert_eq!(confirmers(Some(&policy), level, lsn, &candidates).len(), held);
            // And no later position is, of those that were chosen.
            let chosen = |i: usize| matches!(decision.members[i].0, SyncState::Sync | SyncState::Quorum);
            let beyond = (0..candidates.len()).filter(|&i| chosen(i) && candidates[i].at.at(level) > lsn).count();
            prop_assert!(beyond < policy.count);
        }
    }

    /// A weaker level is never confirmed less far.
    #[test]
    fn levels_are_ordered(policy in policies(), rows in rows()) {
        let candidates: Vec<_> = rows.iter().map(Row::candidate).collect();
        let write = decide(&policy, Level::Write, &candidates).confirmed;
        let flush = decide(&policy, Level::Flush, &candidates).confirmed;
        prop_assert!(write >= flush);
    }

    #[test]
    fn no_text_is_a_panic_and_what_is_shown_is_read_back(text in "[aA*,()\"0-9 anyFIRST;-]{0,24}", policy in policies()) {
        if let Ok(read) = text.parse::<Policy>() {
            prop_assert_eq!(read.to_string().parse::<Policy>().unwrap(), read);
        }
        prop_assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }
}

#[test]
fn names_that_can_never_confirm_are_named() {
    let known = [("a", true), ("b", false)];
    let why = |policy: &str| obstacle(&policy.parse().unwrap(), &known);
    for possible in ["", "a", "ANY 1 (a, x)", "FIRST 1 (b, A)", "*"] {
        assert_eq!(why(possible), None, "{possible}");
    }
    let text = why("ANY 2 (a, x)").unwrap();
    assert!(text.starts_with("2 have to confirm") && text.contains("no follower named 'x'"), "{text}");
    assert!(!text.contains("'a'"), "{text}");
    let text = why("b").unwrap();
    assert!(text.contains("follower 'b' was set up never to count"), "{text}");
    assert!(why("ANY 2 (*)").unwrap().contains("1 followers are known"));
}
