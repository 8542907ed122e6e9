//! The binary `gpas`.

fn main() -> std::process::ExitCode {
    gpas::cli::main()
}
