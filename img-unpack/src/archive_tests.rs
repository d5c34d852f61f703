use super::*;

/// A header block with its checksum, and `data` padded.
fn member(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    with(name, kind, data, |_| {})
}

fn with(name: &str, kind: u8, data: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut header = vec![0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000001");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut header);
    let sum: u32 = header.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(data);
    header.resize(header.len().div_ceil(512) * 512, 0);
    header
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    member("pax", b'x', &body)
}

fn all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>> {
    let mut archive = Archive::new(bytes);
    let mut found = Vec::new();
    while let Some(member) = archive.next_member()? {
        let mut data = Vec::new();
        while !archive.data()?.is_empty() {
            let piece = archive.data()?.to_vec();
            archive.consume(piece.len());
            data.extend(piece);
        }
        found.push((member, data));
    }
    Ok(found)
}

fn names(bytes: &[u8]) -> Vec<String> {
    all(bytes).unwrap().into_iter().map(|(member, _)| String::from_utf8_lossy(&member.path).into_owned()).collect()
}

#[test]
fn pax_size_is_the_member_s_and_never_an_extension_header_s() {
    let mut bytes = pax(&[("size", b"2048")]);
    bytes.extend(member("././@LongLink", b'L', b"longname.txt\0"));
    bytes.extend(member("file_a", b'0', b"0123456789abcdef"));
    bytes.extend(member("file_b", b'0', b"0123456789abcdef"));
    bytes.extend([0; 4096]);
    assert_eq!(names(&bytes), ["longname.txt"]);
    for stated in ["00000000000", "00000000001"] {
        let mut bytes = pax(&[("size", b"5")]);
        bytes.extend(with("a", b'0', b"01234", |h| h[124..135].copy_from_slice(stated.as_bytes())));
        bytes.extend(member("b", b'0', b"x"));
        let found = all(&bytes).unwrap();
        assert_eq!((found[0].1.as_slice(), found.len()), (&b"01234"[..], 2));
    }
}

#[test]
fn pax_values_are_bytes_by_their_length() {
    let value = b"bar\nbaz=1\n\0x";
    let mut bytes = pax(&[("SCHILY.xattr.user.foo", value), ("SCHILY.xattr.user.empty", b""), ("path", b"caf\xe9")]);
    bytes.extend(member("short", b'0', b""));
    let (member, _) = all(&bytes).unwrap().remove(0);
    assert_eq!(member.path, b"caf\xe9");
    assert_eq!(member.xattrs, [(b"user.foo".to_vec(), value.to_vec()), (b"user.empty".to_vec(), vec![])]);
}

#[test]
fn malformed_headers_are_errors() {
    let file = member("a", b'0', b"");
    for body in [&b"99 path=aaa\n"[..], b"x path=a\n", b"12 path=aaaa", b"0 \n", b"5 a\n\n", b"7 =a=b\n\n"] {
        assert!(all(&[member("pax", b'x', body), file.clone()].concat()).is_err(), "{body:?}");
    }
    assert!(all(&[pax(&[("path", b"vis\0hid")]), file.clone()].concat()).is_err());
    assert!(all(&pax(&[("path", b"orphan")])).is_err());
    assert!(all(&with("a", b'0', b"", |h| h[124..136].fill(0xff))).is_err());
    assert!(all(&with("a", b'0', b"", |h| h[124..135].copy_from_slice(b"0000000009x"))).is_err());
    let mut sum = file.clone();
    sum[0] = b'b';
    assert!(all(&sum).unwrap_err().to_string().contains("checksum"));
    assert!(all(&file[..100]).is_err());
    assert!(all(&member("a", b'0', &[1; 600])[..900]).is_err());
    let huge = with("a", b'0', b"", |h| h[124..136].copy_from_slice(b"\x80\0\0\0\x40\0\0\0\0\0\0\0"));
    assert!(all(&huge).is_err());
}

#[test]
fn limits_hold() {
    let file = member("a", b'0', b"");
    let blob = vec![b'x'; 1 << 21];
    assert!(all(&[pax(&[("comment", &blob)]), file.clone()].concat()).unwrap_err().to_string().contains("at most"));
    assert!(all(&[member("l", b'L', &blob), file].concat()).is_err());
}

#[test]
fn numbers_to_either_base() {
    let change = |h: &mut [u8]| {
        h[108..116].copy_from_slice(&(3_000_000_000u64 | 1 << 63).to_be_bytes());
        h[136..148].fill(0xff);
        h[146..148].copy_from_slice(&(-1000i16).to_be_bytes());
    };
    let (member, _) = all(&with("a", b'0', b"", change)).unwrap().remove(0);
    assert_eq!((member.uid, member.mtime), (3_000_000_000, (-1000, 0)));
}

#[test]
fn times_have_nanoseconds_and_may_be_negative() {
    assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
    assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
    assert_eq!(time(b"-3"), Some((-3, 0)));
    assert_eq!(time(b"1.0123456789123"), Some((1, 12_345_678)));
    assert_eq!(time(b"99999999999999999999"), Some((i64::MAX, 0)));
    assert_eq!(time(b"1e5"), None);
    assert_eq!(time(b""), None);
}

#[test]
fn global_headers_rename_nothing_and_the_end_is_the_end() {
    let global = member("pax/global", b'g', b"30 comment=0123456789abcdefg\n\n");
    let bytes = [global, member("a", b'0', b""), vec![0; 512], member("after", b'0', b"")].concat();
    assert_eq!(names(&bytes), ["a"]);
    assert_eq!(names(&[]), Vec::<String>::new());
    assert_eq!(names(&[0; 1024]), Vec::<String>::new());
}

#[test]
fn names_of_all_forms() {
    let prefix = with("name", b'0', b"", |h| h[345..349].copy_from_slice(b"pre/"));
    assert_eq!(names(&prefix), ["pre//name"]);
    let long = "n".repeat(200);
    let mut bytes = member("l", b'L', format!("{long}\0").as_bytes());
    bytes.extend(member("k", b'K', format!("{long}t\0").as_bytes()));
    bytes.extend(member("short", b'1', b""));
    let (member, _) = all(&bytes).unwrap().remove(0);
    assert_eq!((member.path, member.link), (long.clone().into_bytes(), format!("{long}t").into_bytes()));
}

#[test]
fn data_of_any_type_is_skipped() {
    let bytes = [member("l", b'1', b"data"), member("s", b'2', &[9; 700]), member("z", b'z', b"?")].concat();
    assert_eq!(names(&[bytes, member("end", b'0', b"")].concat()), ["l", "s", "z", "end"]);
}

#[test]
fn sparse_files_of_all_forms() {
    let old = with("old", b'S', b"AABB", |h| {
        for (at, n) in [(386, 0), (398, 2), (410, 1000), (422, 2), (483, 2000)] {
            h[at..at + 11].copy_from_slice(format!("{n:011o}").as_bytes());
        }
    });
    let expected = Some(vec![(0, 2), (1000, 2)]);
    let mut v01 = pax(&[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", b"0,2,1000,2"), ("GNU.sparse.name", b"n")]);
    v01.extend(member("GNUSparseFile.0/n", b'0', b"AABB"));
    let mut v1 = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"2000"),
    ]);
    let mut data = b"2\n0\n2\n1000\n2\n".to_vec();
    data.resize(512, 0);
    data.extend(b"AABB");
    v1.extend(member("GNUSparseFile.0/real", b'0', &data));
    for (bytes, name) in [(old, "old"), (v01, "n"), (v1, "real")] {
        let (member, data) = all(&bytes).unwrap().remove(0);
        assert_eq!((member.path.as_slice(), member.size), (name.as_bytes(), 2000));
        assert_eq!((member.segments, data.as_slice()), (expected.clone(), &b"AABB"[..]), "{name}");
    }
    let lying = [pax(&[("GNU.sparse.size", b"2"), ("GNU.sparse.map", b"0,2,1000,2")]), member("n", b'0', b"AABB")];
    assert!(all(&lying.concat()).is_err());
}

#[test]
fn extension_headers_of_one_member_have_one_budget() {
    let value = vec![b'v'; 900 << 10];
    let mut bytes = Vec::new();
    for i in 0..4 {
        bytes.extend(pax(&[(&format!("SCHILY.xattr.user.{i}"), &value)]));
    }
    let file = member("f", b'0', b"");
    assert_eq!(all(&[&bytes[..], &file].concat()).unwrap()[0].0.xattrs.len(), 4);
    // Of the next member again: the budget is a member's.
    assert_eq!(all(&[&bytes[..], &file, &bytes, &file].concat()).unwrap().len(), 2);
    let names = member("l", b'L', &[b'n'; 60 << 10]).repeat(20);
    for more in [pax(&[("SCHILY.xattr.user.4", &value)]), names] {
        let error = all(&[&bytes[..], &more, &file].concat()).unwrap_err().to_string();
        assert!(error.contains("extension headers of one member"), "{error}");
    }
}
