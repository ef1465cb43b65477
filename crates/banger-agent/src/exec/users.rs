//! Who a command runs as, read from the guest's own `/etc/passwd` and
//! `/etc/group`. A static program has no name service, and the guest's other
//! sources of users are not asked.

/// A user with everything a process needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    /// Empty where the user has none.
    pub(crate) shell: String,
}

/// Why there is no such user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    /// No name and no number.
    #[error("there is no user {0:?} in the guest")]
    User(String),
    /// No name and no number.
    #[error("there is no group {0:?} in the guest")]
    Group(String),
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

/// Finds the user that `wanted` means: `name`, `uid`, `name:group`, `uid:gid`;
/// root where absent or empty. Numbers need no entry.
pub(crate) fn find(wanted: Option<&str>, passwd: &str, group: &str) -> Result<User, UserError> {
    let wanted = wanted.filter(|wanted| !wanted.is_empty()).unwrap_or("0");
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = number(user);
    let by_name = entries(passwd).find(|entry| entry.name == user);
    let entry = by_name.or_else(|| entries(passwd).find(|entry| Some(entry.uid) == number));
    let mut found = match (entry, number) {
        (Some(entry), _) => User {
            name: entry.name.to_owned(),
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: if entry.home.is_empty() {
                "/"
            } else {
                entry.home
            }
            .to_owned(),
            shell: entry.shell.to_owned(),
        },
        (None, Some(uid)) => User {
            // An image without files still has its root.
            name: if uid == 0 {
                "root".to_owned()
            } else {
                uid.to_string()
            },
            uid,
            gid: 0,
            groups: Vec::new(),
            home: if uid == 0 { "/root" } else { "/" }.to_owned(),
            shell: String::new(),
        },
        (None, None) => return Err(UserError::User(user.to_owned())),
    };
    match wanted_group.filter(|group| !group.is_empty()) {
        // A group that is named is the only one.
        Some(wanted) => {
            found.gid =
                group_id(wanted, group).ok_or_else(|| UserError::Group(wanted.to_owned()))?;
        }
        None => found.groups = memberships(&found.name, found.gid, group),
    }
    Ok(found)
}

fn number(text: &str) -> Option<u32> {
    text.parse::<i32>()
        .ok()
        .and_then(|number| u32::try_from(number).ok())
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with(['#', '+']))?;
        let _password = fields.next()?;
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let _comment = fields.next();
        let home = fields.next().unwrap_or("");
        let shell = fields.next().unwrap_or("").trim();
        Some(Entry {
            name,
            uid,
            gid,
            home,
            shell,
        })
    })
}

/// Name, id and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        Some((
            name,
            fields.next()?.parse().ok()?,
            fields.next().unwrap_or(""),
        ))
    })
}

fn group_id(wanted: &str, group: &str) -> Option<u32> {
    let named = groups(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, id, _)| id);
    named.or_else(|| number(wanted))
}

fn memberships(user: &str, own: u32, group: &str) -> Vec<u32> {
    let mut ids = vec![own];
    for (_, id, members) in groups(group) {
        if members.split(',').any(|member| member.trim() == user) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # comment\n\
        broken:x:nan:0::/:\n\
        bob:x:1000:100:Bob,,,:/home/bob:/bin/sh\n\
        1234:x:77:77::/srv:\n\
        nohome:x:5:5";
    const GROUP: &str = "root:x:0:\nusers:x:100:\ndocker:x:999:alice,bob\nadm:x:4:bob\nbad\n";

    fn ids(wanted: &str) -> (u32, u32, Vec<u32>) {
        let user = find(Some(wanted), PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let bob = find(Some("bob"), PASSWD, GROUP).unwrap();
        assert_eq!(
            (bob.home.as_str(), bob.shell.as_str()),
            ("/home/bob", "/bin/sh")
        );
        assert_eq!(ids("bob"), (1000, 100, vec![100, 999, 4]));
        assert_eq!(ids("1000"), ids("bob"));
        assert_eq!(find(None, PASSWD, GROUP).unwrap().name, "root");
        assert_eq!(find(Some("nohome"), PASSWD, GROUP).unwrap().home, "/");
    }

    #[test]
    fn a_named_group_is_the_only_one() {
        assert_eq!(ids("bob:docker"), (1000, 999, vec![]));
        assert_eq!(ids("bob:7"), (1000, 7, vec![]));
        assert_eq!(ids("55:66"), (55, 66, vec![]));
        assert_eq!(ids(":adm"), (0, 4, vec![]));
    }

    #[test]
    fn a_name_wins_over_a_number_and_a_number_needs_no_entry() {
        assert_eq!(ids("1234").0, 77);
        assert_eq!(ids("4321"), (4321, 0, vec![0]));
        let root = find(None, "", "").unwrap();
        assert_eq!((root.uid, root.home.as_str()), (0, "/root"));
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        let user = |wanted| find(Some(wanted), PASSWD, GROUP).unwrap_err();
        assert_eq!(user("nobody"), UserError::User("nobody".to_owned()));
        assert_eq!(user("-1"), UserError::User("-1".to_owned()));
        assert_eq!(user("4294967295"), UserError::User("4294967295".to_owned()));
        assert_eq!(user("bob:nogroup"), UserError::Group("nogroup".to_owned()));
    }
}
