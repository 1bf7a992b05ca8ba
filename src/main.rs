//! The `towline` program: parse, run, print the error, set the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    towline::cli::main()
}
