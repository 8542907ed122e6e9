//! The binary `gpas`.

fn main() -> std::process::ExitCode {
    gpas_train::cli::main()
}
