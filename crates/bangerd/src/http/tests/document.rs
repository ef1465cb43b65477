//! The document of the API, made from the contract's types. The one that is
//! checked in must equal it; `BANGER_BLESS=1` writes it anew.

use std::collections::BTreeMap;

use banger_api::Empty;
use banger_api::endpoint::{self, Endpoint, Method};
use banger_api::error::{Code, ErrorBody};
use banger_api::image::ImageCatalogResult;
use banger_api::kernel::KernelCatalogResult;
use banger_api::operation::{
    DiskFullEvent, HealthEvent, LogEvent, PartEvent, ProgressEvent, StageEvent, VmEvent,
};
use banger_api::vm::ExecParams;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::routes::Served;
use super::House;

/// What is not an exchange of JSON: events and the upgrade.
const STREAMS: [(Method, &str); 3] = [
    (Method::Get, endpoint::EVENTS),
    (Method::Get, endpoint::OPERATION_EVENTS),
    (Method::Post, endpoint::EXEC),
];

#[derive(Default)]
struct Document {
    paths: BTreeMap<String, BTreeMap<String, Value>>,
    schemas: BTreeMap<String, Value>,
}

impl Document {
    fn schema<T: ToSchema>(&mut self) -> Value {
        let mut found = Vec::new();
        T::schemas(&mut found);
        found.push((T::name().into_owned(), T::schema()));
        for (name, schema) in found {
            self.schemas
                .insert(name, serde_json::to_value(schema).unwrap());
        }
        json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
    }

    fn add(&mut self, served: &Served, id: &str, body: Option<Value>, replies: Value) {
        let mut parameters: Vec<Value> = served
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        parameters.extend(served.query.iter().map(
            |name| json!({ "name": name, "in": "query", "required": false, "schema": { "type": "string" } }),
        ));
        let mut operation =
            json!({ "operationId": id, "parameters": parameters, "responses": replies });
        if let Some(schema) = body {
            operation["requestBody"] =
                json!({ "content": { "application/json": { "schema": schema } } });
        }
        let path = format!("/v1{}", served.path);
        self.paths
            .entry(path)
            .or_default()
            .insert(served.method.name().to_lowercase(), operation);
    }

    fn endpoint<E: Endpoint>(&mut self, id: &str, served: &[Served])
    where
        E::Request: ToSchema + 'static,
        E::Reply: ToSchema,
    {
        let served = find(served, E::METHOD, E::PATH);
        let none = std::any::TypeId::of::<E::Request>() == std::any::TypeId::of::<Empty>();
        let body = (!none).then(|| self.schema::<E::Request>());
        let reply = self.schema::<E::Reply>();
        let error = self.schema::<ErrorBody>();
        let replies = json!({
            E::STATUS.to_string(): content("application/json", &reply),
            "default": content("application/json", &error),
        });
        self.add(&served, id, body, replies);
    }

    /// The same endpoint with `?available=true` answers otherwise.
    fn or_catalog<E: Endpoint, T: ToSchema>(&mut self) {
        let catalog = self.schema::<T>();
        let path = format!("/v1{}", E::PATH);
        let operation = self
            .paths
            .get_mut(&path)
            .and_then(|methods| methods.get_mut("get"));
        let replies = &mut operation.expect("it was added")["responses"];
        let schema = &mut replies["200"]["content"]["application/json"]["schema"];
        *schema = json!({ "anyOf": [schema.take(), catalog] });
    }

    fn stream(&mut self, id: &str, path: &str, served: &[Served]) {
        let served = find(served, Method::Get, path);
        let error = self.schema::<ErrorBody>();
        let text = json!({ "type": "string" });
        let replies = json!({
            "200": content("text/event-stream", &text),
            "default": content("application/json", &error),
        });
        self.add(&served, id, None, replies);
    }

    fn finish(mut self) -> Value {
        // The macro that derives schemas does not see names inside a macro.
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        let known = self.schemas.insert(
            "Code".to_owned(),
            json!({ "type": "string", "enum": codes }),
        );
        assert!(known.is_some(), "errors have no code");
        json!({
            "openapi": "3.1.0",
            "info": { "title": "banger", "version": "1", "license": { "name": "Apache-2.0" } },
            "paths": self.paths,
            "components": { "schemas": self.schemas },
        })
    }
}

fn content(kind: &str, schema: &Value) -> Value {
    json!({ "description": "", "content": { kind: { "schema": schema } } })
}

fn find(served: &[Served], method: Method, path: &str) -> Served {
    let found = served
        .iter()
        .find(|route| route.method == method && route.path == path);
    *found.unwrap_or_else(|| panic!("{} {path} is not served", method.name()))
}

fn document(served: &[Served]) -> Value {
    let mut all = Document::default();
    macro_rules! endpoints {
        ($($name:ident)*) => { $(all.endpoint::<endpoint::$name>(stringify!($name), served);)* };
    }
    endpoints! {
        Ping System Doctor Disk DiskReclaim Shutdown
        VmList VmCreate VmShow VmSet VmDelete VmStart VmRestart VmStop VmKill
        VmStats VmLogs VmHealth VmPing
        ImageList ImagePull ImageRegister ImageBuild ImagePromote ImageCachePrune ImageShow
        ImageDelete
        KernelList KernelPull KernelImport KernelShow KernelDelete
        OperationList OperationShow OperationCancel
    }
    all.or_catalog::<endpoint::ImageList, ImageCatalogResult>();
    all.or_catalog::<endpoint::KernelList, KernelCatalogResult>();
    all.stream("Events", endpoint::EVENTS, served);
    all.stream("OperationEvents", endpoint::OPERATION_EVENTS, served);
    let body = all.schema::<ExecParams>();
    let error = all.schema::<ErrorBody>();
    let replies = json!({
        "101": { "description": "The connection carries frames from here on." },
        "default": content("application/json", &error),
    });
    all.add(
        &find(served, Method::Post, endpoint::EXEC),
        "VmExec",
        Some(body),
        replies,
    );
    all.schema::<StageEvent>();
    all.schema::<ProgressEvent>();
    all.schema::<PartEvent>();
    all.schema::<LogEvent>();
    all.schema::<VmEvent>();
    all.schema::<HealthEvent>();
    all.schema::<DiskFullEvent>();
    all.finish()
}

#[tokio::test]
async fn the_daemon_serves_exactly_the_contract() {
    let house = House::new().await;
    let (_, served) = super::super::router(house.app.clone());
    let mut served: Vec<_> = served
        .iter()
        .map(|route| (route.method.name(), route.path))
        .collect();
    let mut promised: Vec<_> = endpoint::ALL
        .iter()
        .map(|(method, path, _)| (method.name(), *path))
        .collect();
    promised.extend(STREAMS.iter().map(|(method, path)| (method.name(), *path)));
    served.sort_unstable();
    promised.sort_unstable();
    assert_eq!(served, promised);
}

#[tokio::test]
async fn the_checked_in_document_is_the_one_of_the_types() {
    let house = House::new().await;
    let (_, served) = super::super::router(house.app.clone());
    let document = document(&served);
    let promised: usize = endpoint::ALL.len() + STREAMS.len();
    let written: usize = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .map(|path| path.as_object().unwrap().len())
        .sum();
    assert_eq!(written, promised);
    if std::env::var_os("BANGER_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
        std::fs::write(path, text).unwrap();
        return;
    }
    let answer = house.ask("GET", "/openapi.json", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        document,
        "BANGER_BLESS=1 writes docs/openapi.json anew"
    );
}
