// Package deploycheck holds to the code what stands beside it: the image, the
// manifests, alerts and dashboard in deploy, and the pages in docs. It consists
// of tests.
//
// Names and numbers are taken from the code, never written down twice: settings
// from what [packship/cmd/internal/app.Load] accepts, metrics from a connector
// that runs, paths from its handler, commands from the command line itself.
//
// The manifests are decoded strictly into structs that have the fields in use and
// no others, instead of the types of the Kubernetes API: those would be the
// largest dependency of the module, for the sake of one test. What kustomize makes
// of the manifests is decoded into those types in .ci/manifests, a module of its
// own. Where promtool is installed, it is asked as well.
//
// go test -update writes again what is made from the code or from another file.
package deploycheck
