// Package app is packship without the process around it: the settings, the
// connections to Kafka, and [Run], which wires the parts together, serves the
// status page and stops everything in reverse. The commands, the demo and the
// end-to-end tests all use it, so what they run is what is deployed.
//
// It is the only package that reads the environment. It hears no signals and
// never exits: the context that is passed in decides.
package app
