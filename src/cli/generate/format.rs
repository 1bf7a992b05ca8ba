//! towline-log(5): the format of the log, from the modules that encode it.

use super::roff::Page;
use super::source;
use crate::{record, segment};

/// The page.
pub(super) fn page() -> String {
    let mut page = Page::new("towline-log", 5);
    page.section("NAME");
    page.raw("towline\\-log \\- format of the segments of a towline log");
    page.section("DESCRIPTION");
    page.markdown(
        "A node keeps its log in the directory `log` of its state directory: the changes of a data directory, in the \
         order in which they happened. The log is a stream of records; a position in it, counted in uncompressed \
         bytes, is an LSN, printed as two halves in hexadecimal, like `16/B374D848`. Each 16 MiB of the stream are a \
         segment, a file of its own.\n\n\
         The name of a segment is `TTTTTTTTNNNNNNNNNNNNNNNN`: 8 hexadecimal digits of the timeline and 16 of the \
         segment's number. While it is written it ends in `.partial`. A sealed segment never changes and is the same, \
         byte for byte, on every node.\n\n\
         Segments are read with `towline log dump`, `towline log verify` and `towline log stat`; `zstd -dc` prints the \
         records of a sealed one.",
    );
    page.section("SEGMENTS");
    page.markdown(&described(include_str!("../../segment.rs")));
    page.subsection("Flags of a frame");
    for (bit, name, text) in [
        (segment::flags::STARTS, "STARTS", "the first record is the first of its change set"),
        (
            segment::flags::ENDS,
            "ENDS",
            "the last record ends its change set: a commit, or with ABORT an abort",
        ),
        (segment::flags::EXACT, "EXACT", "the commit is an exact cut"),
        (segment::flags::ABORT, "ABORT", "the change set is aborted: nothing of it counts"),
    ] {
        page.term(&format!("{bit} `{name}`"), text);
    }
    page.section("RECORDS");
    page.markdown(&described(include_str!("../../record.rs")));
    page.section("LIMITS");
    for (name, value, unit) in [
        ("RAW_MAX", segment::RAW_MAX as u64, "uncompressed bytes of a frame"),
        ("STORED_MAX", segment::STORED_MAX as u64, "stored bytes of a frame's payload"),
        ("FILE_MAX", segment::FILE_MAX, "bytes of a segment's file"),
        ("HEADER_LEN", segment::HEADER_LEN as u64, "bytes of a segment's header"),
        ("FRAME_LEN", segment::FRAME_LEN as u64, "bytes of a frame's header"),
        ("TRAILER_LEN", segment::TRAILER_LEN as u64, "bytes of a trailer"),
        ("BLOCK", record::BLOCK, "bytes of a block, the unit of change within a file"),
        ("BODY_MAX", record::BODY_MAX as u64, "bytes of a record's body"),
        ("WRITE_MAX", record::WRITE_MAX as u64, "bytes of data of a write"),
        ("NAME_MAX", record::NAME_MAX as u64, "bytes of a name"),
        ("TARGET_MAX", record::TARGET_MAX as u64, "bytes of a symlink's target"),
        ("XATTR_MAX", record::XATTR_MAX as u64, "bytes of an extended attribute's value"),
        ("EXCLUDES_MAX", record::EXCLUDES_MAX as u64, "bytes of a list of exclude patterns"),
    ] {
        page.term(&format!("`{name}`"), &format!("{value} {unit}"));
    }
    page.section("SEE ALSO");
    page.raw(".BR towline (1),");
    page.raw(".BR towline\\-log\\-dump (1),");
    page.raw(".BR zstd (1)");
    page.finish()
}

/// A module's head without the sentence that says which module that is.
fn described(text: &str) -> String {
    let doc = source::module_doc(text);
    doc.split_once("\n\n").map(|(_, rest)| rest.to_owned()).unwrap_or(doc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_and_field_of_the_format_is_in_the_page() {
        let text = page();
        for word in [
            "towline\\(rsn",
            "restore point",
            "excludes",
            "CRC32C",
            "SHA\\-256 of the segment before",
            "16384 bytes",
        ] {
            assert!(text.contains(word), "{word}");
        }
        assert_eq!(text.matches(".TS").count(), 5);
    }
}
