//! Capture against real directories and a real log. What the log says is folded by a mirror of its own,
//! contents included, and compared with the directory by code that shares nothing with capture.

mod bed;
mod exact;
mod files;
mod guards;
mod names;
