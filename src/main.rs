//! The `slackwater` command.

fn main() -> std::process::ExitCode {
    slackwater::cli::main(std::time::Instant::now())
}
