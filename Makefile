# What is done often. Everything else is a command of Go or of packship itself.

VERSION ?= dev
TAG     ?= local

.PHONY: test lint manifests demo image rules docs sbom vuln man help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: ## all tests; they need nothing but Go
	go test ./...

lint: ## go vet, gofmt, golangci-lint
	go vet ./...
	test -z "$$(gofmt -l .)"
	golangci-lint run ./...

manifests: ## renders the overlays, and checks what comes out by the Kubernetes API's own types
	cd .ci/manifests && go test ./...

demo: ## the whole story on this machine
	go run ./cmd/packship demo

image: ## the container image
	docker build -f deploy/Dockerfile --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) -t packship:$(TAG) .

rules: ## checks and tests the alerts; needs promtool
	promtool check config --syntax-only deploy/prometheus/prometheus.yml
	promtool check rules deploy/prometheus/rules.yaml
	promtool test rules deploy/prometheus/rules_test.yaml

docs: ## writes what in docs and deploy is made from the code
	go test ./cmd/internal/deploycheck -update

vuln: ## known vulnerabilities in what the program calls
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

man: ## manual pages of all commands
	go run ./cmd/internal/manual bin/man1

sbom: ## bill of materials of the binary, as CycloneDX JSON
	mkdir -p bin
	go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 app \
		-json -licenses -main cmd/packship -output bin/packship.sbom.json .
