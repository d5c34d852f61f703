//! What flows through pipes: an OCI runtime configuration (runtime-spec `config.json`), and our one member `layers`.
//!
//! Members that a tool does not know pass through unchanged, so the document is kept as JSON, with accessors for what
//! the tools read. The accessors treat `null` as absent and a member of the wrong type as an error.

use crate::error::{Error, Result, ResultExt};
use serde_json::{Map, Value, json};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The runtime-spec version that the documents follow.
pub const OCI_VERSION: &str = "1.0.2";

/// More than any sensible configuration, and little enough to hold.
const MAX_BYTES: u64 = 16 << 20;

/// An OCI runtime configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Document(Map<String, Value>);

impl Default for Document {
    fn default() -> Self {
        Document::new()
    }
}

impl Document {
    /// A document that says nothing but its version.
    pub fn new() -> Self {
        let mut members = Map::new();
        members.insert("ociVersion".into(), OCI_VERSION.into());
        Document(members)
    }

    /// From a file, or from stdin if `path` is `-`.
    ///
    /// Errors: cannot be read, larger than 16 MiB, empty (the tool before in the pipe failed), not a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        if path == Path::new("-") {
            std::io::stdin().take(MAX_BYTES + 1).read_to_end(&mut bytes).call(format_args!("read(stdin)"))?;
        } else {
            std::fs::File::open(path)
                .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
                .call(format_args!("read({path:?})"))?;
        }
        Document::parse(&bytes).map_err(|error| error.within(format_args!("document {path:?}")))
    }

    /// From JSON text. Errors as for [`Document::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::new(format_args!("larger than {MAX_BYTES} bytes")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(Error::new("empty").hint("the tool before it in the pipe failed, or printed nothing"));
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(members)) => Ok(Document(members)),
            Ok(_) => Err(Error::new("not an OCI runtime configuration: no JSON object")),
            Err(error) => Err(Error::new(format_args!("not an OCI runtime configuration: {error}"))),
        }
    }

    /// JSON text with a final newline.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.0).unwrap_or_default();
        text.push('\n');
        text
    }

    /// All members.
    pub fn members(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The value at `path` (`process/user/uid`), if it is there and not null.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut members = &self.0;
        let mut names = path.split('/').peekable();
        loop {
            let value = members.get(names.next()?)?;
            if names.peek().is_none() {
                return (!value.is_null()).then_some(value);
            }
            members = value.as_object()?;
        }
    }

    /// Puts `value` at `path`, making the objects on the way; what is there and no object is replaced.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut members = &mut self.0;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            let entry = members.entry(parent).or_insert_with(|| json!({}));
            if !entry.is_object() {
                *entry = json!({});
            }
            let Value::Object(inner) = entry else { unreachable!("made an object above") };
            members = inner;
        }
        members.insert(name.to_string(), value.into());
    }

    /// Takes the member at `path` away, if it is there.
    pub fn remove(&mut self, path: &str) -> Option<Value> {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut members = &mut self.0;
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            members = members.get_mut(parent)?.as_object_mut()?;
        }
        members.remove(name)
    }

    /// The text at `path`. Error: there, but no text.
    pub fn text(&self, path: &str) -> Result<Option<&str>> {
        self.get(path).map(|value| value.as_str().ok_or_else(|| wrong(path, "text"))).transpose()
    }

    /// The whole number at `path`, 0 or more. Error: there, but no such number.
    pub fn number(&self, path: &str) -> Result<Option<u64>> {
        self.get(path).map(|value| value.as_u64().ok_or_else(|| wrong(path, "a whole number"))).transpose()
    }

    /// The flag at `path`. Error: there, but neither true nor false.
    pub fn flag(&self, path: &str) -> Result<Option<bool>> {
        self.get(path).map(|value| value.as_bool().ok_or_else(|| wrong(path, "true or false"))).transpose()
    }

    /// The list at `path`, empty if absent. Error: there, but no list.
    pub fn list(&self, path: &str) -> Result<&[Value]> {
        match self.get(path) {
            None => Ok(&[]),
            Some(value) => value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(path, "a list")),
        }
    }

    /// The list of texts at `path`, empty if absent. Error: there, but something else.
    pub fn texts(&self, path: &str) -> Result<Vec<&str>> {
        self.list(path)?.iter().map(|value| value.as_str().ok_or_else(|| wrong(path, "a list of texts"))).collect()
    }

    /// The layers, base first. Errors: not a list of absolute paths.
    pub fn layers(&self) -> Result<Vec<PathBuf>> {
        let layers: Vec<PathBuf> = self.texts("layers")?.into_iter().map(PathBuf::from).collect();
        match layers.iter().find(|layer| !layer.is_absolute()) {
            Some(layer) => Err(Error::new(format_args!("layers: {layer:?} is not an absolute path"))),
            None => Ok(layers),
        }
    }

    /// Where the root is, from `root.path`. Errors: no text; not absolute (a bundle's relative path has to be made
    /// absolute by who reads the bundle).
    pub fn root(&self) -> Result<Option<PathBuf>> {
        match self.text("root/path")?.map(PathBuf::from) {
            Some(path) if !path.is_absolute() => Err(Error::new(format_args!("root.path: {path:?} is not absolute"))),
            root => Ok(root),
        }
    }
}

fn wrong(path: &str, kind: &str) -> Error {
    Error::new(format_args!("{}: not {kind}", path.replace('/', ".")))
}

/// A path as a JSON text. Error: the path is not UTF-8, which JSON cannot hold.
pub fn path_text(path: impl AsRef<OsStr>) -> Result<String> {
    let path = path.as_ref();
    std::str::from_utf8(path.as_bytes()).map(str::to_string).map_err(|_| {
        Error::new(format_args!("{path:?}: not UTF-8, and a document is JSON"))
            .hint("run COMMAND in this chain instead of passing a document on")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_pass_through_in_order() {
        let text =
            br#"{"ociVersion":"1.0.2","zebra":{"x":[1,2]},"process":{"args":["sh"],"odd":null},"layers":["/a"]}"#;
        let mut document = Document::parse(text).unwrap();
        document.set("root/path", "/mnt");
        let again: Value = serde_json::from_str(&document.to_text()).unwrap();
        let names: Vec<&String> = again.as_object().unwrap().keys().collect();
        assert_eq!(names, ["ociVersion", "zebra", "process", "layers", "root"]);
        assert_eq!(again["zebra"]["x"][1], 2);
        assert_eq!(again["process"]["odd"], Value::Null);
    }

    #[test]
    fn null_is_absent_and_the_wrong_type_is_an_error() {
        let document =
            Document::parse(br#"{"process":{"cwd":null,"args":[1]},"root":{"path":"rel"},"layers":["x"]}"#).unwrap();
        assert_eq!(document.text("process/cwd").unwrap(), None);
        assert_eq!(document.text("nowhere/at/all").unwrap(), None);
        assert!(document.texts("process/args").is_err());
        assert!(document.root().is_err());
        assert!(document.layers().is_err());
    }

    #[test]
    fn what_is_no_document_says_why() {
        assert!(Document::parse(b" \n").unwrap_err().to_string().contains("the tool before"));
        assert!(Document::parse(b"[]").unwrap_err().to_string().contains("no JSON object"));
        assert!(Document::parse(b"{").is_err());
    }

    #[test]
    fn set_and_remove_walk_the_path() {
        let mut document = Document::new();
        document.set("linux/resources/memory/limit", 5);
        assert_eq!(document.number("linux/resources/memory/limit").unwrap(), Some(5));
        assert_eq!(document.remove("linux/resources/memory/limit"), Some(json!(5)));
        assert_eq!(document.remove("linux/none/limit"), None);
    }
}
