//! Apply: what the log says becomes what the directory holds.
#[allow(dead_code, reason = "its executor follows")]
mod plan;
