//! The verb that makes certificates.

use std::fs;

use crate::support::command::run;

#[test]
fn certificates_are_made_once() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("tls");
    let text = dir.to_str().unwrap();
    let made = run(&format!("tls-init {text} --json")).expect(0).json();
    assert_eq!(made["hosts"], serde_json::json!([format!("{text}/one"), format!("{text}/two")]));
    assert_eq!(made["ca_key"], format!("{text}/ca-key.pem"));
    for time in ["expires", "ca_expires"] {
        let time = made[time].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
    }
    let key = fs::read(dir.join("one/key.pem")).unwrap();
    run(&format!("tls-init {text}")).refused(1, &[text, "not empty", "hint:"]);
    assert!(fs::read(dir.join("one/key.pem")).unwrap() == key);

    let other = place.path().join("other");
    let lines = run(&format!("tls-init {}", other.display())).expect(0).stdout;
    assert_eq!(lines.lines().count(), 3, "{lines}");
    run("tls-init /").refused(2, &["names no directory"]);
}
