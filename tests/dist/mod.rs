//! The systemd units: what they run parses, and what ends one leads where it should.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::command::{Run, finish, run, slackwater};
use crate::support::skip;

const STORE: &str = "/var/lib/slackwater/web/chain";

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist")
}

/// The lines `KEY=VALUE` of a file, in their order. A `\` at the end of a line goes on.
fn settings(name: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(dist().join(name)).unwrap().replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    lines
        .map(|line| line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}")))
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

#[track_caller]
fn setting(settings: &[(String, String)], name: &str) -> String {
    let mut found = settings.iter().filter(|(key, _)| key == name);
    let value = found.next().unwrap_or_else(|| panic!("no {name}")).1.clone();
    assert!(found.next().is_none(), "{name} twice");
    value
}

/// Splits at spaces, as systemd does: quotes keep a word together.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "{text}");
    words.extend(word);
    words
}

/// What systemd runs for the machine `web`, with these variables.
fn command(unit: &str, variables: &[(String, String)]) -> Vec<String> {
    let line = setting(&settings(unit), "ExecStart").replace("%i", "web");
    let mut command = Vec::new();
    for word in words(&line) {
        match variables.iter().find(|(name, _)| word == format!("${name}")) {
            Some((_, value)) => command.extend(words(value)),
            None => {
                let put_in = |word: String, (name, value): &(String, String)| word.replace(&format!("${{{name}}}"), value);
                command.push(variables.iter().fold(word, put_in).replace("$$", "$"));
            }
        }
    }
    command
}

/// Whether the command takes these arguments: it looks at all before `--help`.
fn parses(arguments: &[String]) -> Run {
    run_with(arguments, "--help")
}

fn run_with(arguments: &[String], last: &str) -> Run {
    finish(&mut slackwater(arguments.iter().map(String::as_str).chain([last])))
}

#[test]
fn the_standby_is_started_with_options_that_there_are() {
    let command = command("slackwater-standby@.service", &settings("machine.env.example"));
    assert_eq!(command[0], "slackwater");
    assert!(command.windows(2).any(|pair| pair == ["--store", STORE]), "{command:?}");
    assert!(command.windows(2).any(|pair| pair == ["--listen", "0.0.0.0:7001"]), "{command:?}");
    parses(&command[1..]).expect(0);
    // The test can fail.
    run("standby --nonsense --help").refused(2, &["--nonsense"]);
    run("standby --witness nonsense --help").refused(2, &["nonsense"]);
}

/// Runs what the primary's unit does, with a store or without. Returns the arguments of the command
/// that it becomes.
fn primary_becomes(variables: &[(String, String)], has_store: bool) -> Result<Vec<String>, i32> {
    let dir = tempfile::tempdir().unwrap();
    let stub = dir.path().join("slackwater");
    std::fs::write(&stub, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&stub, PermissionsExt::from_mode(0o755)).unwrap();
    let store = dir.path().join("chain");
    if has_store {
        std::fs::create_dir(&store).unwrap();
        std::fs::write(store.join("description.json"), "{}").unwrap();
    }
    let store = store.to_str().unwrap();
    let line = command("slackwater-primary@.service", variables);
    assert!(line.iter().any(|word| word == STORE), "{line:?}");
    let line: Vec<_> = line.iter().map(|word| word.replace(STORE, store)).collect();
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let output = Command::new(&line[0]).args(&line[1..]).env("PATH", path).envs(variables.iter().cloned()).output().unwrap();
    let status = output.status.code().unwrap();
    if status != 0 {
        assert!(!output.stderr.is_empty());
        return Err(status);
    }
    Ok(String::from_utf8(output.stdout).unwrap().lines().map(|word| word.replace(store, STORE)).collect())
}

#[test]
fn the_primary_goes_on_with_a_machine_or_begins_one() {
    let mut variables = settings("machine.env.example");
    let begins = primary_becomes(&variables, false).unwrap();
    assert_eq!(begins[0], "checkpoint");
    assert!(begins.iter().any(|word| word == "console=ttyS0 root=/dev/vda"), "one word: {begins:?}");
    let goes_on = primary_becomes(&variables, true).unwrap();
    assert_eq!(goes_on[..2], ["restore", "--continue"]);
    for command in [&begins, &goes_on] {
        assert!(command.windows(2).any(|pair| pair == ["--standby", "two:7001"]), "{command:?}");
        parses(command).expect(0);
    }
    // The other host, which has no machine of its own.
    variables.iter_mut().filter(|(name, _)| name == "MACHINE").for_each(|(_, value)| value.clear());
    assert_eq!(primary_becomes(&variables, false), Err(4));
    assert_eq!(primary_becomes(&variables, true).unwrap(), goes_on);
}

#[test]
fn who_must_not_run_the_machine_becomes_its_standby() {
    let [primary, standby] = ["primary", "standby"].map(|role| settings(&format!("slackwater-{role}@.service")));
    let codes = setting(&primary, "RestartPreventExitStatus");
    assert_eq!(codes.split(' ').collect::<Vec<_>>(), ["2", "3", "4"]);
    assert_eq!((setting(&primary, "Restart"), setting(&standby, "Restart")), ("on-failure".into(), "no".into()));
    assert_eq!(setting(&primary, "OnFailure"), "slackwater-standby@%i.service");
    assert_eq!(setting(&standby, "OnFailure"), "slackwater-primary@%i.service");
    // Both run the machine at some time, so both may do the same.
    let of_one = ["Description", "OnFailure", "ExecStartPre", "ExecStart", "Restart", "RestartPreventExitStatus", "WantedBy"];
    let shared =
        |unit: Vec<(String, String)>| -> Vec<_> { unit.into_iter().filter(|(key, _)| !of_one.contains(&key.as_str())).collect() };
    assert_eq!(shared(primary), shared(standby));
}

#[test]
fn systemd_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg("--man=no");
    for role in ["primary", "standby"] {
        let unit = std::fs::read_to_string(dist().join(format!("slackwater-{role}@.service"))).unwrap();
        // It looks whether the program is there.
        let unit = unit.replace("ExecStart=slackwater", &format!("ExecStart={}", env!("CARGO_BIN_EXE_slackwater")));
        for instance in ["", "web"] {
            let file = dir.path().join(format!("slackwater-{role}@{instance}.service"));
            std::fs::write(&file, &unit).unwrap();
        }
        command.arg(dir.path().join(format!("slackwater-{role}@web.service")));
    }
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            // What it says of other units is no matter.
            assert!(output.status.success() && !said.contains("slackwater"), "{said}");
        }
        Err(error) => skip("dist::systemd_finds_nothing_wrong", &format!("systemd-analyze: {error}")),
    }
}
