# make build    the programs, in target/release
# make demo     installs what it needs, builds, boots a VM, runs a command in it
# make test     format, lints and every test, real guests included
# make install  PREFIX=/usr/local
# make audit    licences, sources and banned crates
# make bench    ratios against the bare engine and the usual tools

PREFIX ?= /usr/local
CARGO ?= cargo
# Real programs of a test run can be told to die at a named step, and to let a
# guest reach what listens on this host.
TEST_FEATURES = --features bangerd/failpoints,banger-gateway/open-policy

.PHONY: all build agent demo test lint install audit bench clean
all: build

build:
	@scripts/prepare build
	$(CARGO) build --release -p banger -p bangerd -p banger-gateway
	@$(MAKE) --no-print-directory agent
	@cp -f target/agent/banger-agent target/release/banger-agent

# The agent is the one static program: only its own last step is told so,
# since procedural macros of the others cannot be linked that way.
agent:
	$(CARGO) rustc -p banger-agent --profile agent -- -C target-feature=+crt-static

demo:
	@scripts/prepare demo
	@$(MAKE) --no-print-directory build
	@scripts/demo target/release

test:
	@scripts/prepare test
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets $(TEST_FEATURES) -- -D warnings
	@$(MAKE) --no-print-directory agent
# All of it at once: a part alone would choose other features of shared
# libraries and build them a second time.
	$(CARGO) build --workspace --all-targets $(TEST_FEATURES)
	@cp -f target/agent/banger-agent target/debug/banger-agent
	@if $(CARGO) nextest --version >/dev/null 2>&1; \
	then $(CARGO) nextest run --workspace $(TEST_FEATURES); \
	else $(CARGO) test --workspace $(TEST_FEATURES) -- --test-threads 2; fi

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/banger
	install -m 755 target/release/banger target/release/bangerd $(DESTDIR)$(PREFIX)/bin/
	install -m 755 target/release/banger-agent target/release/banger-gateway $(DESTDIR)$(PREFIX)/lib/banger/

audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

bench:
	@scripts/prepare test
	@$(MAKE) --no-print-directory build
	bench/run

clean:
	$(CARGO) clean
