//! Every reply is what the document promises.

use serde_json::Value;

use super::catalogs::Shop;
use super::{Answer, House};
use crate::artifact::host_arch;

/// Checks a value against a schema of the document, as far as the document
/// uses JSON Schema. Unknown fields are errors too: a reply says nothing that
/// is not promised.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let schema = document
            .pointer(reference.trim_start_matches('#'))
            .ok_or_else(|| format!("{at}: no {reference}"))?;
        return check(document, schema, value, at);
    }
    let choices = schema.get("oneOf").or(schema.get("anyOf"));
    if let Some(choices) = choices.and_then(Value::as_array) {
        let mut wrong = Vec::new();
        for choice in choices {
            match check(document, choice, value, at) {
                Ok(()) => return Ok(()),
                Err(why) => wrong.push(why),
            }
        }
        return Err(wrong.join(", and "));
    }
    if let Some(names) = schema["enum"].as_array()
        && !names.contains(value)
    {
        return Err(format!("{at}: {value} is none of {names:?}"));
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = |kind: &str| match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        other => panic!("{at}: unknown type {other}"),
    };
    if !kinds.iter().any(|kind| fits(kind)) {
        return Err(format!("{at}: {value} is no {kinds:?}"));
    }
    if let Some(fields) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                return Err(format!("{at}: no {name}"));
            }
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            let listed = schema["properties"].get(name);
            match listed.or(schema.get("additionalProperties")) {
                Some(schema) => check(document, schema, field, &at)?,
                None => return Err(format!("{at} is not in the document")),
            }
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{at}[{index}]"))?;
    }
    Ok(())
}

#[test]
fn a_reply_that_was_not_promised_is_found() {
    let document = serde_json::json!({"one": {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", null]}},
    }});
    let schema = serde_json::json!({"anyOf": [{"$ref": "#/one"}, {"type": "null"}]});
    let fits = |value: Value| check(&document, &schema, &value, "it").is_ok();
    for (right, text) in [
        (true, r#"{"a": 1}"#),
        (true, r#"{"a": 1, "b": "x"}"#),
        (true, "null"),
        (false, "{}"),
        (false, r#"{"a": 1.5}"#),
        (false, r#"{"a": 1, "b": "y"}"#),
        (false, r#"{"a": 1, "c": 2}"#),
        (false, "[]"),
    ] {
        assert_eq!(fits(serde_json::from_str(text).unwrap()), right, "{text}");
    }
}

struct Checked<'a> {
    house: &'a House,
    document: Value,
    seen: Vec<String>,
}

impl Checked<'_> {
    /// Asks, and holds the answer against the document's entry for `route`.
    async fn ask(&mut self, method: &str, route: &str, path: &str, body: &str) -> Answer {
        let answer = self.house.ask(method, path, body).await;
        let at = format!("{method} {route}");
        let operation = &self.document["paths"][route][method.to_lowercase()];
        assert!(operation.is_object(), "{at} is not in the document");
        let status = answer.status.as_u16().to_string();
        let replies = &operation["responses"];
        let reply = replies.get(&status).unwrap_or(&replies["default"]);
        let schema = &reply["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{at}: nothing promised for {status}");
        if let Err(why) = check(&self.document, schema, &answer.json(), &at) {
            panic!("{why}");
        }
        if answer.status.is_success() {
            self.seen.push(at);
        } else {
            answer.code();
        }
        answer
    }
}

#[tokio::test]
async fn replies_are_what_the_document_promises() {
    let house = House::new().await;
    let document = house.get("/openapi.json").await;
    let mut all = Checked {
        house: &house,
        document,
        seen: Vec::new(),
    };
    let rootfs = house.place.path().join("root.ext4");
    banger_images::ext4::empty(&rootfs, 256 << 20, "root", None, false).unwrap();

    for path in [
        "/ping",
        "/system",
        "/system/doctor",
        "/system/disk",
        "/vms",
        "/images",
        "/kernels",
        "/operations",
    ] {
        all.ask("GET", &format!("/v1{path}"), &format!("/v1{path}"), "")
            .await;
    }
    let body = format!(
        "{{\"name\":\"mine\",\"rootfs_path\":\"{}\"}}",
        rootfs.display()
    );
    all.ask("POST", "/v1/images/register", "/v1/images/register", &body)
        .await;
    let path = "/v1/images/{image}/promote";
    all.ask("POST", path, "/v1/images/mine/promote?wait=30s", "")
        .await;
    all.ask("GET", "/v1/images", "/v1/images", "").await;
    all.ask("GET", "/v1/images/{image}", "/v1/images/mine", "")
        .await;
    all.ask("DELETE", "/v1/images/{image}", "/v1/images/mine", "")
        .await;
    all.ask("DELETE", "/v1/images/{image}", "/v1/images/mine", "")
        .await;
    let left = house.app.paths.images().join("left");
    std::fs::write(left, "without an owner").unwrap();
    for body in [r#"{"dry_run":true,"images":true}"#, "{}"] {
        let (route, path) = (
            "/v1/system/disk/reclaim",
            "/v1/system/disk/reclaim?wait=30s",
        );
        let done = all.ask("POST", route, path, body).await.json();
        assert_eq!(done["operation"]["success"], true, "{done}");
        let items = &done["operation"]["reclaim"]["items"];
        assert_eq!(items[0]["name"], "state/images/left", "{done}");
    }
    all.ask(
        "POST",
        "/v1/images/cache/prune",
        "/v1/images/cache/prune",
        "{}",
    )
    .await;
    all.ask("POST", "/v1/images/build", "/v1/images/build", "{}")
        .await;
    all.ask("GET", "/v1/kernels/{kernel}", "/v1/kernels/no", "")
        .await;
    all.ask("DELETE", "/v1/kernels/{kernel}", "/v1/kernels/no", "")
        .await;
    all.ask("POST", "/v1/kernels/pull", "/v1/kernels/pull", "{}")
        .await;
    let body = r#"{"name":"k","from_dir":"/nonexistent"}"#;
    all.ask("POST", "/v1/kernels/import", "/v1/kernels/import", body)
        .await;

    let body = r#"{"name":"box","memory_mib":256}"#;
    let made = all
        .ask("POST", "/v1/vms", "/v1/vms?wait=30s", body)
        .await
        .json();
    assert_eq!(made["operation"]["success"], true, "{made}");
    let id = made["operation"]["id"].as_str().unwrap().to_owned();
    all.ask("GET", "/v1/operations", "/v1/operations", "").await;
    all.ask(
        "GET",
        "/v1/operations/{id}",
        &format!("/v1/operations/{id}?wait=1s"),
        "",
    )
    .await;
    all.ask(
        "DELETE",
        "/v1/operations/{id}",
        &format!("/v1/operations/{id}"),
        "",
    )
    .await;
    all.ask("GET", "/v1/vms", "/v1/vms?state=running", "").await;
    for what in ["", "/stats", "/logs", "/health", "/ping"] {
        all.ask(
            "GET",
            &format!("/v1/vms/{{vm}}{what}"),
            &format!("/v1/vms/box{what}"),
            "",
        )
        .await;
    }
    all.ask(
        "PATCH",
        "/v1/vms/{vm}",
        "/v1/vms/box",
        r#"{"vcpu_count":1}"#,
    )
    .await;
    for what in ["restart", "stop", "start", "kill"] {
        let path = format!("/v1/vms/box/{what}?wait=30s");
        let answer = all
            .ask("POST", &format!("/v1/vms/{{vm}}/{what}"), &path, "")
            .await;
        assert_eq!(
            answer.json()["operation"]["success"],
            true,
            "{what}: {}",
            answer.json()
        );
    }
    all.ask(
        "PATCH",
        "/v1/vms/{vm}",
        "/v1/vms/box",
        r#"{"vcpu_count":1,"name":"crate"}"#,
    )
    .await;
    all.ask("DELETE", "/v1/vms/{vm}", "/v1/vms/crate?wait=30s", "")
        .await;
    all.ask("POST", "/v1/system/shutdown", "/v1/system/shutdown", "{}")
        .await;

    // Of the rest, which the test below has, only refusals were seen.
    let mut seen = all.seen;
    seen.sort();
    seen.dedup();
    let missing: Vec<String> = banger_api::endpoint::ALL
        .iter()
        .map(|(method, path, _)| format!("{} /v1{path}", method.name()))
        .filter(|route| !seen.contains(route))
        .collect();
    assert_eq!(
        missing,
        [
            "POST /v1/images/pull",
            "POST /v1/images/build",
            "POST /v1/kernels/pull",
            "POST /v1/kernels/import",
            "GET /v1/kernels/{kernel}",
            "DELETE /v1/kernels/{kernel}",
        ]
    );
}

#[tokio::test]
async fn replies_about_what_a_catalog_has_are_what_the_document_promises() {
    let shop = Shop::open().await;
    let (kernel, image) = (shop.kernel(), shop.image(Some("mine"), host_arch()));
    shop.offer(&[kernel, image]);
    let house = &shop.house;
    let document = house.get("/openapi.json").await;
    let mut all = Checked {
        house,
        document,
        seen: Vec::new(),
    };
    let import = format!(
        "{{\"name\":\"other\",\"from_dir\":{:?}}}",
        shop.path("from").display().to_string()
    );
    for (method, route, path, body) in [
        ("GET", "/images", "/images?available=true", ""),
        ("GET", "/kernels", "/kernels?available=true", ""),
        (
            "POST",
            "/images/pull",
            "/images/pull?wait=60s",
            r#"{"ref":"box"}"#,
        ),
        ("GET", "/images", "/images?available=true", ""),
        ("GET", "/kernels", "/kernels?available=true", ""),
        ("GET", "/images/{image}", "/images/box", ""),
        ("GET", "/kernels", "/kernels", ""),
        ("GET", "/kernels/{kernel}", "/kernels/mine", ""),
        (
            "POST",
            "/kernels/pull",
            "/kernels/pull?wait=60s",
            r#"{"name":"mine","force":true}"#,
        ),
        ("POST", "/kernels/import", "/kernels/import", &import),
        ("GET", "/operations", "/operations", ""),
        ("GET", "/system/disk", "/system/disk", ""),
        ("DELETE", "/images/{image}", "/images/box", ""),
        ("DELETE", "/kernels/{kernel}", "/kernels/mine", ""),
        ("DELETE", "/kernels/{kernel}", "/kernels/other", ""),
    ] {
        let (route, path) = (format!("/v1{route}"), format!("/v1{path}"));
        let answer = all.ask(method, &route, &path, body).await;
        let said = answer.json();
        assert!(answer.status.is_success(), "{method} {path}: {said}");
        assert_ne!(said["operation"]["success"], false, "{path}: {said}");
    }
}
