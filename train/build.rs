//! Tells the program which commit it was built from, for the records of its runs.

use std::process::Command;

fn main() {
    // A commit moves one of these; outside a checkout neither exists, and the program knows no commit.
    for path in ["../.git/HEAD", "../.git/logs/HEAD"] {
        if std::path::Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let commit = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| output.stdout)
        .unwrap_or_default();
    println!(
        "cargo:rustc-env=GPAS_COMMIT={}",
        String::from_utf8_lossy(&commit).trim()
    );
}
