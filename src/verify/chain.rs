//! The log of a backup: whether its segments lead from start to end.

use super::findings::{Class, Findings};
use crate::log::inspect::{Ending, Report};
use crate::manifest::{Manifest, Range};
use crate::position::SegmentNo;
use crate::segment;

/// Segments of one log in their order: what is wrong with each, and between them.
pub(super) fn segments(reports: &mut [(Vec<u8>, Report)], findings: &Findings) {
    for i in 0..reports.len() {
        let (before, rest) = reports.split_at_mut(i);
        let Some((name, report)) = rest.first_mut() else { return };
        if let Some((_, before)) = before.last() {
            report.follows(before);
        }
        if report.ending == Ending::Corrupt {
            let why = report.problem.as_deref().unwrap_or("it is damaged");
            findings.add(Class::Log, name, why);
        }
    }
}

/// Compares the segments with the ranges that the manifest promises.
pub(super) fn ranges(manifest: &Manifest, mut reports: Vec<(Vec<u8>, Report)>, findings: &Findings) {
    reports.sort_by_key(|(_, r)| (r.timeline, r.segment));
    let system = manifest.system.to_string();
    for (name, report) in reports.iter().filter(|(_, r)| !r.system.is_empty() && r.system != system) {
        let text = format!("it is of system {}, the backup of {system}", report.system);
        findings.add(Class::Log, name, text);
    }
    segments(&mut reports, findings);
    for range in &manifest.log {
        if !findings.stopped() {
            covered(range, &reports, findings);
        }
    }
}

fn covered(range: &Range, reports: &[(Vec<u8>, Report)], findings: &Findings) {
    let Range { timeline, start, end } = *range;
    let (mut reached, mut first) = (start, true);
    for (name, report) in reports.iter().filter(|(_, r)| r.timeline == timeline.0) {
        let Some((from, to)) = report.span() else { continue };
        // A segment that was sealed early is followed by the beginning of the next.
        let next = SegmentNo(report.segment).end();
        let open_end = if report.is_sealed() { next } else { to };
        if open_end <= reached {
            continue;
        }
        // Holes between segments are told by the segment behind them already.
        if from > reached && first {
            let text = format!("the log has a hole before it, from {reached} to {from}");
            findings.add(Class::Log, name, text);
        }
        if to >= end {
            return;
        }
        (reached, first) = (open_end, false);
    }
    let name = format!("log/{}", segment::file_name(timeline, reached.segment(), false));
    findings.add(
        Class::Log,
        name.as_bytes(),
        format!("the log of timeline {timeline} ends at {reached}, before {end}, where the backup does"),
    );
}
