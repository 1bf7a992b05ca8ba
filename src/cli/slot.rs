//! `towline slot`.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::args::Slot;
use super::show;
use crate::control::{Request, SlotRequest};
use crate::error::Result;
use crate::status::render_slots;

pub(super) fn run(command: Slot) -> Result<ExitCode> {
    match command {
        Slot::List(ask) => show(&ask, &Request::Slot(SlotRequest::List {}), |v| match render_slots(v) {
            none if none.is_empty() => "there are no slots\n".to_owned(),
            table => table,
        }),
        Slot::Show(at) => show(&at.ask, &Request::Slot(SlotRequest::Show { name: at.name }), one),
        Slot::Create(c) => {
            let request = SlotRequest::Create { name: c.slot.name, reserve: c.reserve };
            show(&c.slot.ask, &Request::Slot(request), one)
        }
        Slot::Drop(at) => {
            let words = |v: &Value| {
                format!("slot '{}' is dropped\n", v.get("name").and_then(Value::as_str).unwrap_or_default())
            };
            show(&at.ask, &Request::Slot(SlotRequest::Drop { name: at.name }), words)
        }
        Slot::Advance(a) => {
            let request = SlotRequest::Advance { name: a.slot.name, lsn: a.lsn.to_string() };
            show(&a.slot.ask, &Request::Slot(request), one)
        }
    }
}

fn one(v: &Value) -> String {
    render_slots(&json!({"slots": [v.get("slot")]}))
}
