//! What is in a source, and which of it is meant: OCI indexes and manifests, Docker's, and `manifest.json` of docker save.
//!
//! Every document is bounded, checked against its digest, and read strictly where reading it loosely has been abused.

use crate::digest::{Digest, Hasher, chain_ids};
use crate::source::Source;
use chain::{Error, Result};
use serde_json::Value;
use std::fmt;

/// The largest manifest, index or configuration that is taken.
pub const MAX_DOCUMENT: u64 = 8 << 20;
const MAX_DEPTH: u32 = 8;
const MAX_MANIFESTS: usize = 4096;
const REF_NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// Which image of several is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Its reference or digest.
    pub reference: Option<String>,
    /// Its platform.
    pub platform: Option<Platform>,
}

/// `OS/ARCHITECTURE[/VARIANT]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// As in GOOS: `linux`.
    pub os: String,
    /// As in GOARCH: `amd64`, `arm64`.
    pub architecture: String,
    /// Of the architecture: `v7`.
    pub variant: Option<String>,
}

impl Platform {
    /// From `OS/ARCH[/VARIANT]`.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_string())),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant.as_deref() == Some("") {
            return Err(Error::usage(format_args!("platform {text:?}")).hint("write OS/ARCH[/VARIANT], as linux/arm64"));
        }
        Ok(Platform { os: os.into(), architecture: architecture.into(), variant })
    }

    /// This machine's.
    pub fn own() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7".to_string())),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant }
    }

    /// From a descriptor's `platform` or a configuration.
    pub fn of(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_string();
        Platform {
            os: text("os"),
            architecture: text("architecture"),
            variant: value["variant"].as_str().map(str::to_string),
        }
    }

    /// Whether an image for this platform is what `wanted` asks for: a variant only if it is asked for.
    pub fn serves(&self, wanted: &Platform) -> bool {
        let variant = wanted.variant.is_none() || self.variant.is_none() || self.variant == wanted.variant;
        self.os == wanted.os && self.architecture == wanted.architecture && variant
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// An image that a source has.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What it is called.
    pub names: Vec<String>,
    /// Of its manifest; a docker archive has none.
    pub digest: Option<Digest>,
    /// What its descriptor says.
    pub platform: Option<Platform>,
    entry: Entry,
}

#[derive(Clone, Debug)]
enum Entry {
    Manifest(Value),
    Docker(Value),
}

/// A layer of an image, as the source has it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The name of its content in the source.
    pub content: String,
    /// Digest and size that the manifest states of the content.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the plain tar stream, from the configuration.
    pub diff_id: Digest,
    /// Its identity on top of those below.
    pub chain_id: Digest,
}

/// An image, read and checked but for its layers' contents.
#[derive(Clone, Debug)]
pub struct Image {
    /// What it is called.
    pub names: Vec<String>,
    /// The digest of its configuration.
    pub id: Digest,
    /// Its configuration.
    pub config: Value,
    /// Its platform, by its configuration.
    pub platform: Platform,
    /// Base first.
    pub layers: Vec<Layer>,
}

/// All images of `source`. Errors: no image, malformed documents.
pub fn candidates(source: &Source) -> Result<Vec<Candidate>> {
    let docker = source.document("manifest.json", MAX_DOCUMENT)?;
    let index = match source.document("index.json", MAX_DOCUMENT)? {
        Some(text) => Some(text),
        None if source.content("oci-layout")?.is_some() => return Err(Error::new("an OCI layout without index.json")),
        None => None,
    };
    let mut found = Vec::new();
    if let Some(text) = index {
        layout_version(source)?;
        let index = json(&text, "index.json")?;
        collect(source, &index, &[], 0, &mut found).map_err(|error| error.within("index.json"))?;
    }
    if found.is_empty()
        && let Some(text) = docker
    {
        let entries = json(&text, "manifest.json")?;
        let entries = entries.as_array().ok_or_else(|| Error::new("manifest.json: not a list"))?;
        for entry in entries.iter().take(MAX_MANIFESTS) {
            let names = texts(&entry["RepoTags"]).map_err(|error| error.within("manifest.json: RepoTags"))?;
            found.push(Candidate { names, digest: None, platform: None, entry: Entry::Docker(entry.clone()) });
        }
    }
    if found.is_empty() {
        return Err(no_image(source)?);
    }
    Ok(found)
}

/// The image of `source` that `choice` means. Errors: none or several, which are listed; malformed documents; a platform
/// that is not linux.
pub fn choose(source: &Source, choice: &Choice) -> Result<Image> {
    let all = candidates(source)?;
    let mut fit: Vec<Candidate> = match &choice.reference {
        None => all.clone(),
        Some(name) => all.iter().filter(|candidate| candidate.is_called(name)).cloned().collect(),
    };
    if fit.is_empty() {
        let name = choice.reference.as_deref().unwrap_or_default();
        return Err(Error::new(format_args!("no image is called {name:?}")).hint(listing(&all)));
    }
    if choice.platform.is_some() || fit.len() > 1 {
        let wanted = choice.platform.clone().unwrap_or_else(Platform::own);
        let mut matching = Vec::new();
        for candidate in &fit {
            let platform = match &candidate.platform {
                Some(platform) => platform.clone(),
                None => candidate.load(source)?.platform,
            };
            if platform.serves(&wanted) {
                matching.push(candidate.clone());
            }
        }
        if matching.is_empty() {
            return Err(Error::new(format_args!("no image for {wanted}")).hint(listing(&fit)));
        }
        // The exact variant, if it is there, else any.
        if matching.iter().any(|c| c.platform.as_ref() == Some(&wanted)) {
            matching.retain(|c| c.platform.as_ref() == Some(&wanted));
        }
        fit = matching;
    }
    let mut names: Vec<String> = Vec::new();
    let one = fit.iter().all(|candidate| candidate.is_same(&fit[0]));
    if !one {
        return Err(Error::new(format_args!("{} images; choose one with --ref", fit.len())).hint(listing(&fit)));
    }
    for name in fit.iter().flat_map(|candidate| &candidate.names) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let mut image = fit[0].load(source)?;
    image.names = names;
    Ok(image)
}

impl Candidate {
    /// Whether `name` means this image: one of its names, or (the beginning of) its digest.
    fn is_called(&self, name: &str) -> bool {
        let digest = self.digest.as_ref().map(Digest::to_string).unwrap_or_default();
        digest == name || self.names.iter().any(|own| own == name || familiar(own) == familiar(name))
    }

    fn is_same(&self, other: &Candidate) -> bool {
        match (&self.entry, &other.entry) {
            (Entry::Manifest(a), Entry::Manifest(b)) => a["digest"] == b["digest"],
            (Entry::Docker(a), Entry::Docker(b)) => a["Config"] == b["Config"],
            _ => false,
        }
    }

    /// The image itself.
    pub fn load(&self, source: &Source) -> Result<Image> {
        let mut image = match &self.entry {
            Entry::Manifest(descriptor) => match from_manifest(source, descriptor) {
                // Docker 25.0 wrote manifests without their layers beside a manifest.json that has them.
                Err(error) => docker_half(source, descriptor)?.ok_or(error)?,
                Ok(image) => image,
            },
            Entry::Docker(entry) => from_docker(source, entry).map_err(|error| error.within("manifest.json"))?,
        };
        image.names = self.names.clone();
        Ok(image)
    }

    /// Its name for people.
    pub fn title(&self) -> String {
        let platform = self.platform.as_ref().map(|platform| format!(" ({platform})")).unwrap_or_default();
        let digest = || self.digest.as_ref().map_or_else(|| "(unnamed)".to_string(), Digest::to_string);
        format!("{}{platform}", if self.names.is_empty() { digest() } else { self.names.join(", ") })
    }
}

fn listing(candidates: &[Candidate]) -> String {
    let shown: Vec<String> = candidates.iter().take(20).map(Candidate::title).collect();
    let more = candidates.len() - shown.len();
    format!("there are: {}{}", shown.join("; "), if more > 0 { format!("; and {more} more") } else { String::new() })
}

/// A reference in the form people use: without Docker's default host, with its default tag.
pub fn familiar(name: &str) -> String {
    let short = ["docker.io/library/", "index.docker.io/library/", "docker.io/", "index.docker.io/"];
    let name = short.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_string() } else { format!("{name}:latest") }
}

fn layout_version(source: &Source) -> Result<()> {
    let Some(text) = source.document("oci-layout", MAX_DOCUMENT)? else {
        return Err(Error::new("index.json without oci-layout: not an OCI layout"));
    };
    match json(&text, "oci-layout")?["imageLayoutVersion"].as_str() {
        Some("1.0.0") => Ok(()),
        other => Err(Error::new(format_args!("oci-layout: imageLayoutVersion {other:?}; 1.0.0 is supported"))),
    }
}

fn no_image(source: &Source) -> Result<Error> {
    let error = Error::new("no image in it");
    Ok(if source.content("repositories")?.is_some() {
        error.hint("an archive of Docker before 1.10; load it with a newer docker and save it again")
    } else if source.has_any("etc") || source.has_any("usr") || source.has_any("bin") {
        error.hint(
            "it looks like a root file system (docker export); use the tree as rootfs:DIR, or docker save instead",
        )
    } else {
        error.hint("an image is an archive of docker save, or an OCI layout or archive")
    })
}

/// The images below an index, nested ones too; what is no image is passed over.
fn collect(source: &Source, index: &Value, names: &[String], depth: u32, found: &mut Vec<Candidate>) -> Result<()> {
    check_kind(index)?;
    if depth > MAX_DEPTH {
        return Err(Error::new(format_args!("indexes nested more than {MAX_DEPTH} deep")));
    }
    for descriptor in list(&index["manifests"], "manifests")? {
        if is_attestation(descriptor) {
            continue;
        }
        let mut names = names.to_vec();
        names.extend(REF_NAMES.iter().filter_map(|key| descriptor["annotations"][key].as_str()).map(str::to_string));
        names.dedup();
        match descriptor["mediaType"].as_str() {
            Some(kind) if is_index(kind) => {
                let inner = blob(source, descriptor, "index")?;
                collect(source, &inner, &names, depth + 1, found)?;
            }
            Some(kind) if is_manifest(kind) => {
                let digest = Digest::parse(descriptor["digest"].as_str().unwrap_or_default())?;
                let platform = descriptor.get("platform").filter(|value| value.is_object()).map(Platform::of);
                found.push(Candidate {
                    names,
                    digest: Some(digest),
                    platform,
                    entry: Entry::Manifest(descriptor.clone()),
                });
            }
            _ => {}
        }
        if found.len() > MAX_MANIFESTS {
            return Err(Error::new(format_args!("more than {MAX_MANIFESTS} manifests")));
        }
    }
    Ok(())
}

fn is_index(kind: &str) -> bool {
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
        .contains(&kind)
}

fn is_manifest(kind: &str) -> bool {
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"]
        .contains(&kind)
}

fn is_config(kind: &str) -> bool {
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"].contains(&kind)
}

fn is_attestation(descriptor: &Value) -> bool {
    let platform = &descriptor["platform"];
    descriptor["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
        || (platform["os"] == "unknown" && platform["architecture"] == "unknown")
}

/// A document that is one kind and could be read as the other is refused (CVE-2021-41190).
fn check_kind(document: &Value) -> Result<()> {
    let has = |name: &str| document.get(name).is_some_and(|value| !value.is_null());
    if has("manifests") && (has("layers") || has("config")) {
        return Err(Error::new("a document that is both an index and a manifest"));
    }
    let schema = &document["schemaVersion"];
    if !schema.is_null() && schema != 2 {
        return Err(Error::new(format_args!("schemaVersion {schema}; 2 is supported")));
    }
    Ok(())
}

/// The JSON document that `descriptor` names: of its size and digest, and of its media type if the document says one.
fn blob(source: &Source, descriptor: &Value, what: &str) -> Result<Value> {
    let (digest, size) = reference(descriptor).map_err(|error| error.within(what))?;
    let place = |error: Error| error.within(format_args!("{what} {digest}"));
    if size > MAX_DOCUMENT {
        return Err(place(Error::new(format_args!("{size} bytes; at most {MAX_DOCUMENT} are taken"))));
    }
    let text = source.document(&digest.blob(), MAX_DOCUMENT).map_err(place)?;
    let text = text.ok_or_else(|| place(Error::new("not in the image")))?;
    if text.len() as u64 != size {
        return Err(place(Error::new(format_args!("has {} bytes, {size} are stated", text.len()))));
    }
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&text);
    let actual = hasher.finish();
    if actual != digest {
        return Err(place(Error::new(format_args!("has the digest {actual}"))));
    }
    if let Some(data) = descriptor["data"].as_str()
        && base64(data).as_deref() != Some(&text[..])
    {
        return Err(place(Error::new("differs from the data in its descriptor")));
    }
    let document = json(&text, what)?;
    match (document["mediaType"].as_str(), descriptor["mediaType"].as_str()) {
        (Some(own), Some(stated)) if own != stated => {
            Err(place(Error::new(format_args!("is of type {own:?}, {stated:?} is stated"))))
        }
        _ => Ok(document),
    }
}

fn reference(descriptor: &Value) -> Result<(Digest, u64)> {
    let digest =
        Digest::parse(descriptor["digest"].as_str().ok_or_else(|| Error::new("a descriptor without digest"))?)?;
    let size =
        descriptor["size"].as_u64().ok_or_else(|| Error::new(format_args!("{digest}: size {}", descriptor["size"])))?;
    Ok((digest, size))
}

fn from_manifest(source: &Source, descriptor: &Value) -> Result<Image> {
    let manifest = blob(source, descriptor, "manifest")?;
    check_kind(&manifest)?;
    let kind = manifest["config"]["mediaType"].as_str().unwrap_or_default();
    if !is_config(kind) {
        return Err(Error::new(format_args!("not an image: its configuration is of type {kind:?}")));
    }
    let config = blob(source, &manifest["config"], "configuration")?;
    let (id, _) = reference(&manifest["config"])?;
    let mut contents = Vec::new();
    for layer in list(&manifest["layers"], "layers")? {
        let (digest, size) = reference(layer).map_err(|error| error.within("layers"))?;
        contents.push((digest.blob(), Some((digest, size))));
    }
    image(id, config, contents)
}

/// The image in `manifest.json` that has the configuration of the manifest `descriptor` names, if there is one.
fn docker_half(source: &Source, descriptor: &Value) -> Result<Option<Image>> {
    let Some(text) = source.document("manifest.json", MAX_DOCUMENT)? else { return Ok(None) };
    let Ok(manifest) = blob(source, descriptor, "manifest") else { return Ok(None) };
    let Ok((id, _)) = reference(&manifest["config"]) else { return Ok(None) };
    let entries = json(&text, "manifest.json")?;
    for entry in entries.as_array().into_iter().flatten().take(MAX_MANIFESTS) {
        if entry["Config"].as_str() == Some(&id.blob()) {
            return from_docker(source, entry).map(Some);
        }
    }
    Ok(None)
}

fn from_docker(source: &Source, entry: &Value) -> Result<Image> {
    let name = entry["Config"].as_str().ok_or_else(|| Error::new("no Config"))?;
    let text = source.document(name, MAX_DOCUMENT)?;
    let text = text.ok_or_else(|| Error::new(format_args!("configuration {name:?} is not in the image")))?;
    let id = Digest::of(&text);
    let stem = name.rsplit('/').next().unwrap_or(name);
    let stated = stem.strip_suffix(".json").unwrap_or(stem);
    if stated.len() == 64 && stated.bytes().all(|byte| byte.is_ascii_hexdigit()) && stated != id.hex() {
        return Err(Error::new(format_args!("configuration {name:?} has the digest {id}")));
    }
    let config = json(&text, name)?;
    let contents = texts(&entry["Layers"]).map_err(|error| error.within("Layers"))?;
    let missing = |name: &&String| name.is_empty() || !source.content(name).is_ok_and(|content| content.is_some());
    let missing: Vec<&String> = contents.iter().filter(missing).collect();
    if let Some(first) = missing.first() {
        return Err(Error::new(format_args!(
            "{} of {} layers are not in the image, {first:?} first",
            missing.len(),
            contents.len()
        ))
        .hint("save the image again, whole"));
    }
    image(id, config, contents.into_iter().map(|name| (name, None)).collect())
}

fn image(id: Digest, config: Value, contents: Vec<(String, Option<(Digest, u64)>)>) -> Result<Image> {
    let wrong = |why: String| Error::new(format_args!("configuration {id}: {why}"));
    if !config.is_object() {
        return Err(wrong("not a JSON object".into()));
    }
    let platform = Platform::of(&config);
    if !platform.os.is_empty() && platform.os != "linux" {
        return Err(wrong(format!("an image for {platform}; only linux runs here")));
    }
    if config["rootfs"]["type"] != "layers" {
        return Err(wrong(format!("rootfs.type {}; \"layers\" is supported", config["rootfs"]["type"])));
    }
    let diff_ids: Vec<Digest> = texts(&config["rootfs"]["diff_ids"])
        .and_then(|texts| texts.iter().map(|text| Digest::parse(text)).collect())
        .map_err(|error| error.within(format_args!("configuration {id}: diff_ids")))?;
    if diff_ids.len() != contents.len() {
        return Err(wrong(format!("{} diff_ids for {} layers", diff_ids.len(), contents.len())));
    }
    let chain = chain_ids(&diff_ids);
    let layers = contents.into_iter().zip(diff_ids).zip(chain);
    let layers =
        layers.map(|(((content, blob), diff_id), chain_id)| Layer { content, blob, diff_id, chain_id }).collect();
    Ok(Image { names: Vec::new(), id, config, platform, layers })
}

fn json(text: &[u8], what: &str) -> Result<Value> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    serde_json::from_slice(text).map_err(|error| Error::new(format_args!("{what}: not JSON: {error}")))
}

/// A list of texts; `null` and nothing are empty.
fn texts(value: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_string).ok_or_else(|| Error::new("not a list of texts"));
    list(value, "")?.iter().map(text).collect()
}

fn list<'a>(value: &'a Value, what: &str) -> Result<&'a [Value]> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(values) => Ok(values),
        _ => Err(Error::new(format_args!("{what}: not a list"))),
    }
}

/// The bytes of RFC 4648 base64 text.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        let arm = Platform::parse("linux/arm/v7").unwrap();
        assert_eq!(arm.to_string(), "linux/arm/v7");
        assert!(arm.serves(&Platform::parse("linux/arm").unwrap()));
        assert!(!arm.serves(&Platform::parse("linux/arm/v6").unwrap()));
        assert!(!arm.serves(&Platform::parse("linux/arm64").unwrap()));
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a/b/"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_people_use() {
        assert_eq!(familiar("docker.io/library/alpine"), "alpine:latest");
        assert_eq!(familiar("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(familiar("alpine:3.10"), "alpine:3.10");
        assert_eq!(familiar("a@sha256:00"), "a@sha256:00");
    }

    #[test]
    fn base64_of_any_length() {
        assert_eq!(base64("").unwrap(), b"");
        assert_eq!(base64("aGk=").unwrap(), b"hi");
        assert_eq!(base64("aGkh").unwrap(), b"hi!");
        assert!(base64("a*").is_none());
    }
}
