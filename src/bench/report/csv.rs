//! Rows as comma-separated values: a column for each number of the JSON.

use serde_json::Value;

use crate::bench::session::Results;

/// The columns that come first; the others follow by name.
const FIRST: [&str; 9] = ["kind", "axes", "tracker", "memory_bytes", "dirty_pages", "pattern", "vcpus", "ring_entries", "guest"];

/// All rows, with a line of names.
///
/// # Errors
/// Never for what a run measures: numbers and names.
pub fn csv(results: &Results) -> serde_json::Result<String> {
    let rows = results.lines.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<Vec<(String, String)>> = rows.iter().map(cells).collect();
    let mut columns: Vec<&str> = FIRST.to_vec();
    let mut others: Vec<&str> =
        rows.iter().flatten().map(|(name, _)| name.as_str()).filter(|name| !FIRST.contains(name)).collect();
    others.sort_unstable();
    others.dedup();
    columns.extend(others);
    let mut text = format!("{}\n", columns.join(","));
    for row in &rows {
        let cell = |column: &&str| row.iter().find(|(name, _)| name == column).map_or("", |(_, value)| value);
        text.push_str(&format!("{}\n", columns.iter().map(cell).map(quoted).collect::<Vec<_>>().join(",")));
    }
    Ok(text)
}

/// The cells of an object; those of objects within are named by both.
fn cells(row: &Value) -> Vec<(String, String)> {
    let Value::Object(fields) = row else { return Vec::new() };
    let cell = |(name, value): (&String, &Value)| match value {
        Value::Object(_) => cells(value).into_iter().map(|(inner, value)| (format!("{name}_{inner}"), value)).collect(),
        Value::Array(list) => vec![(name.clone(), list.iter().map(plain).collect::<Vec<_>>().join(" "))],
        value => vec![(name.clone(), plain(value))],
    };
    fields.iter().flat_map(cell).collect()
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}
