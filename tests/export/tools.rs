//! What readelf and gdb make of an exported core, where they are installed.

use std::process::Command;

use slackwater::store::Chain;

use super::files;
use crate::support::command::run;
use crate::support::copy::checkpoints;
use crate::support::skip;

/// What a tool printed; none, loudly, where there is no such tool.
fn output(test: &str, tool: &str, args: &[&str]) -> Option<String> {
    match Command::new(tool).args(args).env("LC_ALL", "C").stdin(std::process::Stdio::null()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{tool}: {text}");
            Some(text)
        }
        Err(error) => {
            skip(test, &format!("{tool}: {error}"));
            None
        }
    }
}

#[test]
fn readelf_and_gdb_read_a_core() {
    let test = "export::tools::readelf_and_gdb_read_a_core";
    let store = checkpoints().join("golden/churn");
    let dir = tempfile::tempdir().unwrap();
    let core = dir.path().join("core");
    let core = core.to_str().unwrap();
    run(&format!("export --store {} --epoch 3 --format elf-core --out {core}", store.display())).expect(0);

    if let Some(text) = output(test, "readelf", &["-hlnW", core]) {
        for line in ["CORE (Core file)", "Advanced Micro Devices X86-64", "NT_PRSTATUS", "NT_FPREGSET", "QEMU "] {
            assert!(text.contains(line), "no `{line}` in {text}");
        }
        assert!(!text.contains("Warning") && !text.contains("Error"), "{text}");
    }

    let print = "printf \"rip=%lx rdi=%lx\\n\", $rip, $rdi";
    let commands = [&format!("core-file {core}"), "thread 1", print, "thread 2", print, "x/1gx $rip"];
    let args: Vec<_> = ["-nx", "-batch"].into_iter().chain(commands.into_iter().flat_map(|command| ["-ex", command])).collect();
    if let Some(text) = output(test, "gdb", &args) {
        let registers = files::registers(&Chain::open(&store).unwrap(), 3);
        for [rip, rdi] in &registers {
            assert!(text.contains(&format!("rip={rip:x} rdi={rdi:x}")), "{text}");
        }
        // The guest's code lies where its addresses say.
        let raw = dir.path().join("raw");
        run(&format!("export --store {} --epoch 3 --format raw --out {}", store.display(), raw.display())).expect(0);
        let memory = std::fs::read(raw).unwrap();
        let at = usize::try_from(registers[1][0]).unwrap();
        let code = u64::from_le_bytes(memory[at..at + 8].try_into().unwrap());
        assert!(code != 0 && text.contains(&format!("0x{code:016x}")), "{code:x} in {text}");
        assert!(!text.contains("warning"), "{text}");
    }
}
