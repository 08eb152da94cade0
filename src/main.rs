//! Arguments → app → exit code.

fn main() -> std::process::ExitCode {
    outgate::app::main()
}
