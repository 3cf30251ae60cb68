//! docs/LIMITS.md, rendered from docs/limits: `goals.json` says what is to be reached, every other file what was measured.
//!
//! A goal without a measurement is shown as such, and a missed one stays in the table as a MISS. The format is in docs/limits/README.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Outcome;
use crate::workspace::{Workspace, text};

const FOLDER: &str = "docs/limits";
const GOALS: &str = "goals.json";
const PAGE: &str = "docs/LIMITS.md";

pub(crate) fn write(workspace: &Workspace) -> Outcome {
    let page = render(workspace)?;
    fs::write(workspace.path(PAGE), page.text).map_err(|e| vec![format!("{PAGE}: {e}")])?;
    Ok(format!("limits: {PAGE} written, {}", page.counts))
}

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let page = render(workspace)?;
    if workspace.read(PAGE)? == page.text {
        Ok(format!(
            "limits: {PAGE} is what its measurements give, {}",
            page.counts
        ))
    } else {
        Err(vec![format!(
            "{PAGE} is not what {FOLDER} gives: run `cargo xtask limits`"
        )])
    }
}

struct Page {
    text: String,
    counts: String,
}

/// What is to be reached.
struct Goal {
    id: String,
    what: String,
    others: String,
    at_most: bool,
    value: f64,
    unit: String,
    /// The command that measures it.
    by: String,
}

/// What was reached.
struct Measurement {
    value: f64,
    machine: String,
    command: String,
    date: String,
    note: String,
}

enum Verdict {
    Hit,
    Miss,
}

fn render(workspace: &Workspace) -> Result<Page, Vec<String>> {
    let goals_file = workspace.path(FOLDER).join(GOALS);
    let mut problems = Vec::new();
    let goals: Vec<Goal> = keep(
        &mut problems,
        read_list(workspace, &goals_file)?.iter().map(Goal::parse),
    );
    let mut measured: BTreeMap<String, Measurement> = BTreeMap::new();
    for path in workspace
        .files(FOLDER, "json")
        .into_iter()
        .filter(|p| *p != goals_file)
    {
        let name = workspace.relative(&path);
        for entry in read_list(workspace, &path)? {
            if let Err(problem) = add(&goals, &mut measured, &entry) {
                problems.push(format!("{name}: {problem}"));
            }
        }
    }
    if problems.is_empty() {
        Ok(page(&goals, &measured))
    } else {
        Err(problems)
    }
}

fn keep<T>(problems: &mut Vec<String>, results: impl Iterator<Item = Result<T, String>>) -> Vec<T> {
    results
        .filter_map(|result| result.map_err(|problem| problems.push(problem)).ok())
        .collect()
}

fn read_list(workspace: &Workspace, path: &Path) -> Result<Vec<Value>, Vec<String>> {
    let name = workspace.relative(path);
    let file = fs::read_to_string(path).map_err(|e| vec![format!("{name}: {e}")])?;
    let value: Value = serde_json::from_str(&file).map_err(|e| vec![format!("{name}: {e}")])?;
    match value {
        Value::Array(list) => Ok(list),
        _ => Err(vec![format!("{name}: an array of objects is wanted")]),
    }
}

impl Goal {
    fn parse(entry: &Value) -> Result<Goal, String> {
        let at_most = match text(&entry["op"]) {
            "<=" => true,
            ">=" => false,
            other => {
                return Err(format!(
                    "{FOLDER}/{GOALS}: {}: op is \"<=\" or \">=\", not {other:?}",
                    entry["id"]
                ));
            }
        };
        Ok(Goal {
            id: required(entry, "id")?,
            what: required(entry, "what")?,
            others: text(&entry["others"]).to_owned(),
            at_most,
            value: number(entry, "goal")?,
            unit: text(&entry["unit"]).to_owned(),
            by: text(&entry["by"]).to_owned(),
        })
    }

    fn verdict(&self, reached: f64) -> Verdict {
        let hit = if self.at_most {
            reached <= self.value
        } else {
            reached >= self.value
        };
        if hit { Verdict::Hit } else { Verdict::Miss }
    }

    fn said(&self) -> String {
        let sign = if self.at_most { '≤' } else { '≥' };
        format!("{sign} {}", with_unit(self.value, &self.unit))
    }
}

/// Adds one measurement to those that are there.
fn add(
    goals: &[Goal],
    measured: &mut BTreeMap<String, Measurement>,
    entry: &Value,
) -> Result<(), String> {
    let id = required(entry, "id")?;
    let goal = goals
        .iter()
        .find(|g| g.id == id)
        .ok_or(format!("{id} is no goal of {GOALS}"))?;
    if text(&entry["unit"]) != goal.unit {
        return Err(format!(
            "{id} is measured in {:?}, its goal in {:?}",
            text(&entry["unit"]),
            goal.unit
        ));
    }
    let measurement = Measurement {
        value: number(entry, "reached")?,
        machine: required(entry, "machine")?,
        command: required(entry, "command")?,
        date: required(entry, "date")?,
        note: text(&entry["note"]).to_owned(),
    };
    match measured.insert(id.clone(), measurement) {
        None => Ok(()),
        Some(_) => Err(format!("{id} is measured twice: replace the old entry")),
    }
}

fn page(goals: &[Goal], measured: &BTreeMap<String, Measurement>) -> Page {
    let (mut hits, mut misses) = (0, 0);
    let mut rows = String::new();
    let mut commands = String::new();
    for goal in goals {
        let (reached, verdict, machine, command, date) = match measured.get(&goal.id) {
            None => (
                "not measured yet".to_owned(),
                String::new(),
                "",
                quoted(&goal.by),
                "",
            ),
            Some(m) => {
                let word = match goal.verdict(m.value) {
                    Verdict::Hit => {
                        hits += 1;
                        "hit"
                    }
                    Verdict::Miss => {
                        misses += 1;
                        "**MISS**"
                    }
                };
                let ratio = m.value / goal.value;
                (
                    with_unit(m.value, &goal.unit),
                    format!("{} × goal, {word}", figure(ratio)),
                    m.machine.as_str(),
                    quoted(&m.command),
                    m.date.as_str(),
                )
            }
        };
        let cells = [
            goal.what.as_str(),
            &goal.others,
            &goal.said(),
            &reached,
            &verdict,
            machine,
            &command,
            date,
        ];
        let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
        let _ = writeln!(rows, "| {} |", cells.join(" | ")); // writing to a String cannot fail
        if let Some(m) = measured.get(&goal.id).filter(|m| !m.note.is_empty()) {
            let _ = writeln!(commands, "- {}: {}", goal.what, m.note);
        }
    }
    let open = goals.len() - hits - misses;
    let counts = format!("{hits} hit, {misses} missed, {open} not measured yet");
    let notes = if commands.is_empty() {
        String::new()
    } else {
        format!("\n## Notes\n\n{commands}")
    };
    let text = format!(
        "# Measured limits\n\n\
         <!-- Rendered by `cargo xtask limits` from docs/limits/*.json. Do not edit. -->\n\n\
         Goals, and what was reached, on the machine and with the command that stand beside it. {counts}.\n\n\
         | what | the others | goal | reached | verdict | machine | command | date |\n\
         |---|---|---|---|---|---|---|---|\n\
         {rows}{notes}"
    );
    Page { text, counts }
}

fn quoted(command: &str) -> String {
    match command {
        "" => String::new(),
        command => format!("`{command}`"),
    }
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{} {unit}", figure(value)).trim_end().to_owned()
}

/// Three significant digits, with a space between thousands.
fn figure(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1000.0 {
        let digits = format!("{value:.0}");
        let mut out = String::new();
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) && !out.ends_with('-') {
                out.push(' ');
            }
            out.push(c);
        }
        return out;
    }
    let decimals = if magnitude >= 100.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn required(entry: &Value, key: &str) -> Result<String, String> {
    match text(&entry[key]) {
        "" => Err(format!("{key} is missing in {entry}")),
        found => Ok(found.to_owned()),
    }
}

fn number(entry: &Value, key: &str) -> Result<f64, String> {
    entry[key]
        .as_f64()
        .filter(|n| n.is_finite())
        .ok_or_else(|| format!("{key} must be a number in {entry}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOAL_LIST: &str = r#"[
        { "id": "fetch", "what": "1 GiB", "others": "Kubo 5.3 s", "op": "<=", "goal": 2.6, "unit": "s" },
        { "id": "puts", "what": "durable puts", "op": ">=", "goal": 700, "unit": "MiB/s" },
        { "id": "later", "what": "replay", "op": ">=", "goal": 1.5, "unit": "M/s", "by": "cargo bench later" }
    ]"#;

    fn measurement(id: &str, reached: f64, unit: &str) -> String {
        format!(
            r#"{{ "id": "{id}", "reached": {reached}, "unit": "{unit}", "machine": "2 cores", "command": "cargo bench", "date": "2026-11-21" }}"#
        )
    }

    fn workspace(measurements: &[String]) -> (tempfile::TempDir, Workspace) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        fs::write(root.path().join(FOLDER).join(GOALS), GOAL_LIST).unwrap();
        fs::write(
            root.path().join(FOLDER).join("x.json"),
            format!("[{}]", measurements.join(",")),
        )
        .unwrap();
        let workspace = Workspace::at(root.path());
        (root, workspace)
    }

    #[test]
    fn hits_misses_and_gaps_are_all_shown() {
        let (_root, workspace) = workspace(&[
            measurement("fetch", 3.9, "s"),
            measurement("puts", 741.0, "MiB/s"),
        ]);
        write(&workspace).unwrap();
        let page = workspace.read(PAGE).unwrap();
        assert!(page.contains("| 1 GiB | Kubo 5.3 s | ≤ 2.6 s | 3.9 s | 1.5 × goal, **MISS** | 2 cores | `cargo bench` | 2026-11-21 |"), "{page}");
        assert!(page.contains("741 MiB/s | 1.06 × goal, hit"), "{page}");
        assert!(
            page.contains("≥ 1.5 M/s | not measured yet |  |  | `cargo bench later` |"),
            "{page}"
        );
        assert!(
            page.contains("1 hit, 1 missed, 1 not measured yet"),
            "{page}"
        );
    }

    /// S3.31: what the system cannot do is one page, with every figure that is to be reached, the misses among them, and beside each that was measured the
    /// machine, the command and the day. The page of this very workspace, as it is.
    #[test]
    fn s3_31_the_limits_are_a_page_with_the_machine_beside_each_number() {
        let workspace = Workspace::find();
        check(&workspace).unwrap();
        let page = workspace.read(PAGE).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| "));
        let rows: Vec<Vec<&str>> = rows.map(|row| row.split(" | ").collect()).collect();
        let measured = |row: &&Vec<&str>| row[4].ends_with("hit") || row[4].ends_with("**MISS**");
        let mut count = 0;
        for row in rows.iter().skip(1).filter(measured) {
            let (machine, command, date) = (row[5], row[6], row[7]);
            assert!(machine.contains("core"), "{row:?}");
            assert!(
                command.starts_with('`') && date.starts_with("202"),
                "{row:?}"
            );
            count += 1;
        }
        assert!(count > 20, "{count} figures");
        let front = workspace.read("README.md").unwrap();
        assert!(front.contains(PAGE), "the front page leads there");
    }

    /// S3.38: who distrusts a figure can take it again: each one's command is a program or a script of this repository.
    #[test]
    fn s3_38_each_number_has_its_script_in_the_repository() {
        let workspace = Workspace::find();
        let page = workspace.read(PAGE).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| "));
        let commands = rows.filter_map(|row| row.split(" | ").nth(6));
        let commands = commands.filter_map(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
        let mut count = 0;
        for command in commands {
            let script = script(command);
            assert!(script.is_some(), "`{command}` names no script");
            let script = script.unwrap();
            let found = [
                format!("{script}.rs"),
                format!("{script}/main.rs"),
                script.clone(),
            ];
            let is_there = found.iter().any(|file| workspace.path(file).is_file());
            assert!(is_there, "there is no {script} for `{command}`");
            count += 1;
        }
        assert!(count > 40, "{count} commands");
    }

    /// The file that a command runs, without its end.
    fn script(command: &str) -> Option<String> {
        let words: Vec<&str> = command.split(' ').collect();
        let behind = |flag| {
            let at = words.iter().position(|word| *word == flag)?;
            words.get(at + 1).copied()
        };
        if let Some(bench) = behind("--bench") {
            return Some(format!("benches/benches/{bench}"));
        }
        let of = || behind("-p")?.strip_prefix("gemba-");
        if let Some(example) = behind("--example") {
            return Some(format!("crates/{}/examples/{example}", of()?));
        }
        if let Some(test) = behind("--test") {
            return Some(format!("crates/{}/tests/{test}", of()?));
        }
        words[0]
            .starts_with("interop/")
            .then(|| words[0].to_owned())
    }

    #[test]
    fn a_page_edited_by_hand_is_refused() {
        let (root, workspace) = workspace(&[measurement("fetch", 3.9, "s")]);
        write(&workspace).unwrap();
        check(&workspace).unwrap();
        let page = workspace.read(PAGE).unwrap().replace("**MISS**", "hit");
        fs::write(root.path().join(PAGE), page).unwrap();
        assert!(check(&workspace).unwrap_err()[0].contains("cargo xtask limits"));
    }

    #[test]
    fn strange_measurements_are_refused() {
        for list in [
            vec![measurement("unknown", 1.0, "s")],
            vec![measurement("fetch", 1.0, "ms")],
            vec![
                measurement("fetch", 1.0, "s"),
                measurement("fetch", 2.0, "s"),
            ],
            vec![r#"{ "id": "fetch", "reached": "fast", "unit": "s" }"#.to_owned()],
            vec![measurement("fetch", 1.0, "s").replace("2 cores", "")],
        ] {
            let (_root, workspace) = workspace(&list);
            assert!(write(&workspace).is_err(), "{list:?}");
        }
    }

    #[test]
    fn figures_are_short() {
        for (value, wanted) in [
            (2.6, "2.6"),
            (0.104, "0.1"),
            (298_000.0, "298 000"),
            (741.3, "741"),
            (40.0, "40"),
            (1.0, "1"),
            (1_500_000.0, "1 500 000"),
            (100.0, "100"),
        ] {
            assert_eq!(figure(value), wanted);
        }
    }
}
