// Package manifests holds what lies in deploy to those who read it: kustomize,
// which renders the overlays, the types of the Kubernetes API and of the
// Prometheus operator, into which all that comes out is decoded strictly, and the
// loader of compose. It consists of tests.
//
// It is a module of its own, in a folder that ./... does not see, because these
// libraries are larger than all that packship needs. What the manifests have in
// common with the code is checked in packship/cmd/internal/deploycheck.
package manifests
