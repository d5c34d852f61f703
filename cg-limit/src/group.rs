//! A group: one directory in each hierarchy that its limits need, made, changed, joined, emptied and removed as one thing.

use crate::device_filter;
use crate::layout::{Hierarchy, Layout, Version, in_kernel};
use crate::limits::Limits;
use crate::name::Name;
use crate::setting::{self, Proof, Setting};
use chain::trace::{self, op};
use chain::{Error, Result, ResultExt};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The leaf that an ordinary user's own processes move to, so that their group can hand controllers down.
const LEAF: &str = "ctr-leaf";
/// As long as the kernel may take to let go of what was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The group's directory in one hierarchy.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where.
    pub dir: PathBuf,
    /// Of which kind of hierarchy.
    pub version: Version,
    /// The controllers whose limits are set here.
    pub controllers: Vec<String>,
    /// Made by this process.
    fresh: bool,
}

/// A group, by its directories.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name, without the slash that `linux.cgroupsPath` has before it.
    pub name: Name,
    /// Its directories, one a hierarchy.
    pub parts: Vec<Part>,
}

impl Group {
    /// Makes the group or changes it: afterwards `limits` hold. What is there is kept if that fails. `lasting`: it is going to
    /// stay, and may be frozen or killed later on.
    pub fn limit(layout: &Layout, name: Name, limits: &Limits, lasting: bool) -> Result<Group> {
        // A random name is nobody's, so that there is nothing to look for.
        let parts = if lasting { existing(layout, &name) } else { Vec::new() };
        let mut group = Group { name, parts };
        group.make(layout, limits, lasting).and_then(|()| group.apply(limits)).inspect_err(|_| group.remove_fresh())?;
        Ok(group)
    }

    /// The group called `name`, wherever it is. Error: nowhere.
    pub fn open(layout: &Layout, name: Name) -> Result<Group> {
        let group = Group { parts: existing(layout, &name), name };
        if group.parts.is_empty() {
            return Err(Error::new(format_args!("no group {}", group.name)).hint("give limits to make it"));
        }
        Ok(group)
    }

    /// Where groups with `controller` would go. Errors: it is not handed down there, or the directory may not be written.
    pub fn check(hierarchy: &Hierarchy, controller: &str) -> Result<PathBuf> {
        let dir = base(hierarchy).to_path_buf();
        if hierarchy.controllers.is_empty() && !matches!(controller, "cgroup" | "devices") {
            let path = dir.join("cgroup.controllers");
            let text = fs::read_to_string(&path).call(format_args!("read({path:?})"))?;
            let available: Vec<String> = text.split_whitespace().map(String::from).collect();
            if !available.iter().any(|name| name == controller) {
                return Err(absent(&dir, controller, &available));
            }
        }
        let write = nix::unistd::access(&dir, nix::unistd::AccessFlags::W_OK);
        write
            .call(format_args!("access({dir:?}, W_OK)"))
            .map_err(|error| undelegated(error, hierarchy.controllers.is_empty(), &dir))?;
        Ok(dir)
    }

    fn make(&mut self, layout: &Layout, limits: &Limits, lasting: bool) -> Result<()> {
        for controller in setting::controllers(limits) {
            let (version, hierarchy) = layout.find(controller)?;
            let dir = base(hierarchy).join(self.name.path());
            match self.parts.iter_mut().find(|part| part.dir == dir) {
                Some(part) => part.controllers.push(controller.into()),
                None => {
                    let controllers = vec![controller.into()];
                    self.parts.push(Part { dir, version, controllers, fresh: false });
                }
            }
        }
        for index in 0..self.parts.len() {
            let part = &mut self.parts[index];
            if part.version == Version::V2 {
                let hierarchy = layout.v2.as_ref().ok_or_else(|| Error::new("no cgroup v2 here"))?;
                hand_down(hierarchy, &self.name, &part.controllers)?;
            }
            part.fresh = make_directory(&part.dir, part.version)?;
            if part.fresh && part.version == Version::V1 && part.dir.join("cpuset.mems").exists() {
                fill_cpuset(&part.dir)?;
            }
        }
        // A group without a pids controller is emptied for sure only where all of it can be killed or frozen at once. It is
        // not one of the limits that were asked for, so where it cannot be had the group does without.
        if lasting || !self.parts.iter().any(|part| part.controllers.iter().any(|name| name == "pids")) {
            self.add_keeper(layout);
        }
        Ok(())
    }

    fn add_keeper(&mut self, layout: &Layout) {
        if self.parts.iter().any(|part| part.version == Version::V2) {
            return;
        }
        let places = [(Version::V2, layout.v2.as_ref()), (Version::V1, layout.v1("freezer"))];
        for (version, hierarchy) in places.into_iter().filter_map(|(version, place)| Some((version, place?))) {
            let dir = base(hierarchy).join(self.name.path());
            if self.parts.iter().any(|part| part.dir == dir) {
                return;
            }
            if let Ok(fresh) = make_directory(&dir, version) {
                self.parts.push(Part { dir, version, controllers: Vec::new(), fresh });
                return;
            }
        }
    }

    /// Writes `limits`. What the kernel refuses is tried again after the rest, since some of its files bound each other.
    /// If it is still refused, the group gets back what it had.
    fn apply(&self, limits: &Limits) -> Result<()> {
        let mut before = Vec::new();
        let result = self.parts.iter().try_for_each(|part| part.apply(limits, &mut before));
        if result.is_err() {
            for (path, value) in before.into_iter().rev() {
                let _ = fs::write(path, value);
            }
        }
        result
    }

    /// The descriptors through which a process joins, to be opened before it loses sight of the groups.
    pub fn door(&self) -> Result<Door> {
        let mut door = Door { tasks: Vec::new(), unified: None };
        for part in &self.parts {
            match part.version {
                // A single thread moves without stopping every other process on the machine from forking meanwhile (cgroup.procs
                // does, for some 10 ms), and our processes have one thread.
                Version::V1 => {
                    let path = part.dir.join("tasks");
                    let file =
                        OpenOptions::new().write(true).open(&path).call(format_args!("open({path:?}, O_WRONLY)"))?;
                    door.tasks.push((path, file));
                }
                Version::V2 => {
                    let dir = File::open(&part.dir).call(format_args!("open({:?}, O_DIRECTORY)", part.dir))?;
                    door.unified = Some((part.dir.clone(), dir.into()));
                }
            }
        }
        Ok(door)
    }

    /// Processes in the group and the groups below it.
    pub fn members(&self) -> BTreeSet<i32> {
        let read = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let numbers = |text: String| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>();
        self.parts.iter().flat_map(|part| tree(&part.dir)).flat_map(|dir| numbers(read(dir))).collect()
    }

    /// Kills all members and waits until they are gone. Error: they are not, after some seconds.
    pub fn kill(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        while !self.members().is_empty() {
            self.kill_once();
            if Instant::now() > end {
                return Err(self.busy("kill"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        self.thaw_tree();
        Ok(())
    }

    /// KERNEL(5.14): cgroup.kill. Before it, and on v1: nothing can fork while it is frozen or may have no more processes.
    fn kill_once(&self) {
        if let Some(part) = self.parts.iter().find(|part| part.version == Version::V2) {
            let path = part.dir.join("cgroup.kill");
            if op(format_args!("write({path:?}, \"1\")"), || write_file(&path, "1")).is_ok() {
                self.thaw_tree();
                return;
            }
        }
        let no_more = if self.freeze().is_err() { self.forbid_forks() } else { Vec::new() };
        for pid in self.members() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = op(format_args!("kill({pid}, SIGKILL)"), || nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL));
        }
        // What is frozen dies only when it is thawed, on v1.
        self.thaw_tree();
        for (path, value) in no_more {
            let _ = write_file(&path, value.trim());
        }
    }

    /// Gives what the limits were.
    fn forbid_forks(&self) -> Vec<(PathBuf, String)> {
        let limit = |part: &Part| {
            let path = part.dir.join("pids.max");
            let value = fs::read_to_string(&path).ok()?;
            op(format_args!("write({path:?}, \"0\")"), || write_file(&path, "0")).ok()?;
            Some((path, value))
        };
        self.parts.iter().filter_map(limit).collect()
    }

    /// Stops all members until [`Group::thaw`], and waits until they stand still. Error: the group is in no hierarchy that
    /// can.
    pub fn freeze(&self) -> Result<()> {
        let (path, value) = self.freezer("1", "FROZEN")?;
        op(format_args!("write({path:?}, {value:?})"), || write_file(&path, value))?;
        let still = || match fs::read_to_string(path.with_file_name("cgroup.events")) {
            Ok(events) => events.lines().any(|line| line == "frozen 1"),
            Err(_) => fs::read_to_string(&path).is_ok_and(|state| state.trim() == "FROZEN"),
        };
        let end = Instant::now() + PATIENCE;
        while !still() {
            if Instant::now() > end {
                let error = self.busy("freeze");
                return self.thaw().and(Err(error));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets the members go on.
    pub fn thaw(&self) -> Result<()> {
        let (path, value) = self.freezer("0", "THAWED")?;
        op(format_args!("write({path:?}, {value:?})"), || write_file(&path, value))
    }

    fn freezer(&self, v2: &'static str, v1: &'static str) -> Result<(PathBuf, &'static str)> {
        let files = [("cgroup.freeze", v2), ("freezer.state", v1)];
        let found = files.into_iter().find_map(|(file, value)| {
            let paths = self.parts.iter().map(|part| part.dir.join(file));
            paths.into_iter().find(|path| path.exists()).map(|path| (path, value))
        });
        found.ok_or_else(|| {
            Error::new(format_args!("group {} cannot be frozen", self.name)).hint(
                "it is in neither the unified hierarchy nor the freezer's; was one of them mounted when it was made?",
            )
        })
    }

    /// Thaws the group and those below it that somebody froze inside.
    fn thaw_tree(&self) {
        for dir in self.parts.iter().flat_map(|part| tree(&part.dir)) {
            for (file, frozen, value) in [("cgroup.freeze", "1", "0"), ("freezer.state", "THAWED", "THAWED")] {
                let path = dir.join(file);
                let Ok(state) = fs::read_to_string(&path) else { continue };
                if (state.trim() == frozen) == (value == "0") {
                    let _ = write_file(&path, value);
                }
            }
        }
    }

    /// Removes the group and those below it. Error: it has members, or the kernel does not let go of it.
    pub fn remove(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| self.remove_part(part))
    }

    /// Removes one of its directories, which shows that it has no members. Error: it has.
    pub fn remove_first(&self) -> Result<()> {
        self.parts.first().map_or(Ok(()), |part| self.remove_part(part))
    }

    fn remove_part(&self, part: &Part) -> Result<()> {
        let removed = op(format_args!("rmdir({:?})", part.dir), || fs::remove_dir(&part.dir));
        removed.or_else(|error| match error.errno() {
            Some(Errno::ENOENT) => Ok(()),
            Some(Errno::EBUSY | Errno::ENOTEMPTY) => self.remove_tree(&part.dir, error),
            _ => Err(error),
        })
    }

    /// As [`Group::remove`], for a part that has groups below it or whose members are only just gone.
    fn remove_tree(&self, dir: &Path, mut error: Error) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if !self.members().is_empty() {
                return Err(self.busy("rmdir"));
            }
            if Instant::now() > end {
                return Err(error);
            }
            let mut dirs = tree(dir);
            dirs.reverse();
            match dirs.iter().try_for_each(fs::remove_dir) {
                Ok(()) => return Ok(()),
                Err(cause) if cause.raw_os_error() == Some(Errno::ENOENT as i32) && !dir.exists() => return Ok(()),
                Err(cause) => error = Error::call(format_args!("rmdir({dir:?})"), cause),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn remove_fresh(&self) {
        for part in self.parts.iter().filter(|part| part.fresh) {
            let _ = fs::remove_dir(&part.dir);
        }
    }

    fn busy(&self, what: &str) -> Error {
        let members = self.members();
        let name = |pid: &i32| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{pid} ({})", command.trim())
        };
        let mut names: Vec<String> = members.iter().take(10).map(name).collect();
        if members.len() > names.len() {
            names.push(format!("and {} more", members.len() - names.len()));
        }
        Error::call(format_args!("{what}(group {})", self.name), Errno::EBUSY)
            .hint(format_args!("members: {}", names.join(", ")))
    }
}

impl Part {
    fn apply(&self, limits: &Limits, before: &mut Vec<(PathBuf, String)>) -> Result<()> {
        let mut settings = Vec::new();
        for controller in &self.controllers {
            settings.extend(setting::settings(limits, controller, self.version, self.fresh)?);
        }
        let mut refused = Vec::new();
        for setting in &settings {
            if let Err(error) = self.write(setting, before) {
                match error.errno() {
                    Some(Errno::EINVAL | Errno::EBUSY) if settings.len() > 1 => refused.push(setting),
                    _ => return Err(error),
                }
            }
        }
        refused.into_iter().try_for_each(|setting| self.write(setting, before))?;
        // On v2, devices have no file.
        if self.version == Version::V2 && self.controllers.iter().any(|name| name == "devices") {
            device_filter::attach(&self.dir, &limits.devices)?;
        }
        Ok(())
    }

    fn write(&self, setting: &Setting, before: &mut Vec<(PathBuf, String)>) -> Result<()> {
        let value = &setting.value;
        let mut paths = setting.files.iter().map(|file| self.dir.join(file));
        let path =
            paths.find(|path| setting.files.len() == 1 || path.exists()).unwrap_or(self.dir.join(&setting.files[0]));
        if !self.fresh
            && let Ok(old) = fs::read_to_string(&path)
        {
            before.push((path.clone(), old.trim().to_string()));
        }
        let now = op(format_args!("write({path:?}, {value:?})"), || {
            let mut file = OpenOptions::new().read(setting.proof != Proof::None).write(true).open(&path)?;
            file.write_all(value.as_bytes())?;
            let mut now = String::new();
            if setting.proof != Proof::None {
                let mut buffer = [0u8; 4096];
                let length = file.read_at(&mut buffer, 0)?;
                now.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            Ok::<_, std::io::Error>(now)
        })
        .map_err(|error| self.explain(error, setting, &path))?;
        prove(setting, &path, now.trim())
    }

    /// Facts about a write that failed.
    fn explain(&self, error: Error, setting: &Setting, path: &Path) -> Error {
        let file = setting.files[0].as_str();
        match error.errno() {
            Some(Errno::ENOENT) if file.contains("memsw") || file.contains("swap") => {
                error.hint("this kernel does not account for swap; boot with swapaccount=1")
            }
            Some(Errno::ENOENT) => error.hint(in_kernel(&setting.controller)),
            Some(Errno::EBUSY) if file.contains("limit_in_bytes") => {
                let used = fs::read_to_string(self.dir.join("memory.usage_in_bytes")).unwrap_or_default();
                error.hint(format_args!("{} bytes are in use and cannot be reclaimed", used.trim()))
            }
            Some(Errno::EINVAL) if file.starts_with("cpu.cfs") || file == "cpu.max" => {
                error.hint("a group may not have more CPU time than the group above it")
            }
            Some(Errno::EINVAL) if file.contains("memsw") || file == "memory.limit_in_bytes" => {
                error.hint("memory and swap together may not be less than memory: set --memory-swap too")
            }
            Some(Errno::EINVAL | Errno::ERANGE) if file.starts_with("cpuset.") => {
                let name = file.replace("cpuset.", "");
                let above = fs::read_to_string(path.with_file_name("..").join(file)).unwrap_or_default();
                error.hint(format_args!("the {name} of the group above: {}", above.trim()))
            }
            Some(Errno::ENODEV | Errno::ENXIO) => error.hint("not a whole disk with a request queue"),
            _ => error,
        }
    }
}

/// What the kernel made of a value: the same, rounded (which is said), or something else (an error).
fn prove(setting: &Setting, path: &Path, now: &str) -> Result<()> {
    let value = setting.value.as_str();
    let told = || Error::new(format_args!("{path:?}: {value:?} was written and the kernel says {now:?}"));
    match setting.proof {
        Proof::None => Ok(()),
        Proof::Line => {
            let (device, flow) = value.split_once(' ').unwrap_or((value, ""));
            let taken = now.lines().any(|line| {
                line.strip_prefix(device).is_some_and(|rest| rest.split_whitespace().any(|word| word == flow))
            });
            if taken { Ok(()) } else { Err(told()) }
        }
        Proof::List => {
            if numbers(value) == numbers(now) {
                Ok(())
            } else {
                Err(told())
            }
        }
        Proof::Same if value == now => Ok(()),
        Proof::Same => match (value.parse::<i64>(), now.parse::<i64>()) {
            // v1 has the largest number for "no limit".
            (Ok(-1), Ok(now)) if !(0..=i64::MAX >> 2).contains(&now) => Ok(()),
            (Ok(asked), Ok(now)) if asked.abs_diff(now) < 1 << 21 => {
                trace::say(format_args!("{path:?}: {asked} was asked for, the kernel rounds it to {now}"));
                Ok(())
            }
            _ if value == "max" && now.parse::<i64>().is_ok_and(|now| now > i64::MAX >> 2) => Ok(()),
            _ => Err(told()),
        },
    }
}

/// The numbers of a list of numbers and ranges (`0-2,5`); None if it is none.
fn numbers(list: &str) -> Option<BTreeSet<u32>> {
    let mut out = BTreeSet::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last.checked_sub(first)? > 1 << 16 {
            return None;
        }
        out.extend(first..=last);
    }
    Some(out)
}

/// Through which a process joins a group.
pub struct Door {
    tasks: Vec<(PathBuf, File)>,
    unified: Option<(PathBuf, OwnedFd)>,
}

impl Door {
    /// The unified group, for a child that is to start in it (clone3(2), CLONE_INTO_CGROUP): joining it later stops every
    /// process on the machine from forking for some 10 ms.
    pub fn take_unified(&mut self) -> Option<OwnedFd> {
        self.unified.take().map(|(_, dir)| dir)
    }

    /// This process joins.
    pub fn enter(&self) -> Result<()> {
        for (path, file) in &self.tasks {
            op(format_args!("write({path:?}, \"0\")"), || (&*file).write_all(b"0"))
                .map_err(|error| explain_join(error, path))?;
        }
        if let Some((dir, _)) = &self.unified {
            let path = dir.join("cgroup.procs");
            op(format_args!("write({path:?}, \"0\")"), || write_file(&path, "0"))
                .map_err(|error| explain_join(error, &path))?;
        }
        Ok(())
    }
}

/// Facts about a group that could not be joined.
pub fn explain_join(error: Error, path: &Path) -> Error {
    match error.errno() {
        Some(Errno::EBUSY) => error.hint("it hands controllers down to groups below it, so that only those may have processes (cgroups(7), no internal processes)"),
        Some(Errno::ENOSPC) => error.hint("its cpuset.cpus or cpuset.mems is empty"),
        Some(Errno::EACCES | Errno::EPERM) => {
            error.hint(format_args!("{path:?} and cgroup.procs of the group above both groups must be writable for uid {}", nix::unistd::geteuid()))
        }
        _ => error,
    }
}

/// Where new groups go: for root the top of the hierarchy, for others the own group, which must be theirs.
fn base(hierarchy: &Hierarchy) -> &Path {
    if nix::unistd::geteuid().is_root() {
        return &hierarchy.point;
    }
    match hierarchy.own.parent() {
        Some(above) if hierarchy.own.file_name().is_some_and(|name| name == LEAF) => above,
        _ => &hierarchy.own,
    }
}

fn existing(layout: &Layout, name: &Name) -> Vec<Part> {
    let v1 = layout.v1.iter().map(|hierarchy| (Version::V1, hierarchy));
    let all = v1.chain(layout.v2.as_ref().map(|hierarchy| (Version::V2, hierarchy)));
    let part = |(version, hierarchy): (Version, &Hierarchy)| {
        let dir = base(hierarchy).join(name.path());
        dir.is_dir().then(|| Part { dir, version, controllers: Vec::new(), fresh: false })
    };
    all.filter_map(part).collect()
}

/// Whether it is new.
fn make_directory(dir: &Path, version: Version) -> Result<bool> {
    let made = op(format_args!("mkdir({dir:?})"), || fs::create_dir(dir));
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::EEXIST) && dir.is_dir() => Ok(false),
        Err(error) if error.errno() == Some(Errno::ENOENT) && dir.parent().is_some_and(|above| !above.exists()) => {
            make_directory(dir.parent().unwrap_or(dir), version)?;
            make_directory(dir, version)
        }
        Err(error) => Err(explain_mkdir(error, version, dir)),
    }
}

/// The one command that gets an ordinary user groups of their own.
fn explain_mkdir(error: Error, version: Version, dir: &Path) -> Error {
    match error.errno() {
        Some(Errno::EACCES | Errno::EPERM) => undelegated(error, version == Version::V2, dir.parent().unwrap_or(dir)),
        Some(Errno::EROFS) => error.hint("cgroups are mounted read-only here"),
        _ => error,
    }
}

fn undelegated(error: Error, unified: bool, above: &Path) -> Error {
    let uid = nix::unistd::geteuid();
    let error = error.hint(format_args!("uid {uid} has no group of its own here"));
    if unified && Path::new("/run/systemd/system").exists() {
        return error.hint("start this through: systemd-run --user --scope -p Delegate=yes COMMAND");
    }
    let (group, shell) = (above.join(format!("u{uid}")), nix::unistd::getppid());
    let group = group.display();
    error
        .hint(format_args!("as root: mkdir -p {group} && chown -R {uid} {group} && echo {shell} >{group}/cgroup.procs"))
}

/// v1's cpuset is empty in a new group, which then takes no process: it gets what the group above has.
fn fill_cpuset(dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let above = dir.parent().unwrap_or(dir).join(file);
        let list = fs::read_to_string(&above).call(format_args!("read({above:?})"))?;
        let path = dir.join(file);
        let list = list.trim();
        op(format_args!("write({path:?}, {list:?})"), || write_file(&path, list))?;
    }
    Ok(())
}

/// v2: lets the groups from the top down to the one above `name` hand `controllers` down.
fn hand_down(hierarchy: &Hierarchy, name: &Name, controllers: &[String]) -> Result<()> {
    let needed: Vec<&str> =
        controllers.iter().map(String::as_str).filter(|name| !matches!(*name, "cgroup" | "devices")).collect();
    if needed.is_empty() {
        return Ok(());
    }
    let mut dir = base(hierarchy).to_path_buf();
    let mut below = name.path().components();
    loop {
        enable(hierarchy, &dir, &needed)?;
        let step = below.next();
        if below.as_path().as_os_str().is_empty() {
            return Ok(());
        }
        dir.extend(step.iter());
        if let Err(cause) = fs::create_dir(&dir)
            && cause.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(Error::call(format_args!("mkdir({dir:?})"), cause));
        }
    }
}

fn enable(hierarchy: &Hierarchy, dir: &Path, needed: &[&str]) -> Result<()> {
    // With processes of its own it would be refused (EBUSY), or, worse, taken: for controllers that know threads the kernel
    // makes it the root of a threaded tree, whose groups take no process. The top of all groups may have processes.
    if dir.join("cgroup.type").exists() && !own_processes(dir).is_empty() {
        if dir != hierarchy.own {
            return Err(Error::new(format_args!("{dir:?} has processes of its own"))
                .hint("then it may not hand controllers down (cgroups(7), no internal processes)"));
        }
        vacate(dir)?;
    }
    let words = |file: &str| -> Result<Vec<String>> {
        let path = dir.join(file);
        let text = fs::read_to_string(&path).call(format_args!("read({path:?})"))?;
        Ok(text.split_whitespace().map(String::from).collect())
    };
    let enabled = words("cgroup.subtree_control")?;
    let missing: Vec<&&str> = needed.iter().filter(|name| !enabled.iter().any(|word| word == *name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let available = words("cgroup.controllers")?;
    if let Some(name) = missing.iter().find(|name| !available.iter().any(|word| word == **name)) {
        return Err(absent(dir, name, &available));
    }
    let path = dir.join("cgroup.subtree_control");
    let value: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    let value = value.join(" ");
    op(format_args!("write({path:?}, {value:?})"), || write_file(&path, &value)).map_err(|error| match error.errno() {
        Some(Errno::EBUSY) => {
            error.hint("it has processes of its own, and then it may not hand controllers down (cgroups(7), no internal processes)")
        }
        Some(Errno::EACCES | Errno::EPERM) => undelegated(error, true, dir),
        _ => error,
    })
}

fn own_processes(dir: &Path) -> String {
    fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default()
}

fn absent(dir: &Path, controller: &str, available: &[String]) -> Error {
    let error = Error::new(format_args!(
        "controller {controller}: not handed down to {dir:?}, which has: {}",
        available.join(" ")
    ));
    if nix::unistd::geteuid().is_root() {
        return error.hint(in_kernel(controller));
    }
    error.hint(format_args!(
        "as root, put Delegate=cpu cpuset io memory pids under [Service] in /etc/systemd/system/user@.service.d/delegate.conf, then log in again"
    ))
}

/// Moves the processes of the own group to a leaf below it, so that it may hand controllers down.
fn vacate(dir: &Path) -> Result<()> {
    let leaf = dir.join(LEAF);
    if let Err(cause) = fs::create_dir(&leaf)
        && cause.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(Error::call(format_args!("mkdir({leaf:?})"), cause));
    }
    let to = leaf.join("cgroup.procs");
    for pid in own_processes(dir).lines() {
        match op(format_args!("write({to:?}, {pid:?})"), || write_file(&to, pid)) {
            // It has ended meanwhile.
            Err(error) if error.errno() == Some(Errno::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

/// `dir` and all directories below it, those above first.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut out = vec![dir.to_path_buf()];
    let mut next = 0;
    while next < out.len() {
        let entries = fs::read_dir(&out[next]).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        out.extend(below);
        next += 1;
    }
    out
}

/// One write; the kernel takes a value whole.
fn write_file(path: &Path, value: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_compared_by_what_they_mean() {
        assert_eq!(numbers("0,1,2\n"), numbers("0-2"));
        assert_ne!(numbers("0-1"), numbers("0-2"));
        assert_eq!(numbers("x"), None);
        assert_eq!(numbers("0-99999999"), None);
    }

    #[test]
    fn values_read_back_are_the_same_or_rounded() {
        let same = |value: &str, now: &str, proof| {
            let setting = Setting { controller: "x".into(), files: vec!["f".into()], value: value.into(), proof };
            prove(&setting, Path::new("f"), now).is_ok()
        };
        assert!(same("-1", "9223372036854771712", Proof::Same));
        assert!(same("max", "max", Proof::Same));
        assert!(same("1000000", "999424", Proof::Same));
        assert!(!same("1000000000", "999424", Proof::Same));
        assert!(!same("100", "max", Proof::Same));
        assert!(same("8:0 1024", "8:0 1024", Proof::Line));
        assert!(same("8:0 wbps=1024", "8:0 rbps=max wbps=1024 riops=max wiops=max", Proof::Line));
        assert!(!same("8:0 1024", "", Proof::Line));
    }
}
