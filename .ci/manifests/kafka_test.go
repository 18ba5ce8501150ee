package manifests

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The broker of compose and that of the demo are told what they are by variables
// that Kafka's image takes as they come.

// endpoints reads Kafka's lists: NAME://host:port.
func endpoints(list string) map[string]string {
	all := map[string]string{}
	for one := range strings.SplitSeq(list, ",") {
		name, address, _ := strings.Cut(one, "://")
		all[name] = address
	}
	return all
}

func portOf(address string) string { return address[strings.LastIndex(address, ":")+1:] }

// checkBroker holds the names and ports in a broker's variables to each other.
func checkBroker(t *testing.T, env map[string]string) {
	t.Helper()
	listeners, advertised := endpoints(env["KAFKA_LISTENERS"]), endpoints(env["KAFKA_ADVERTISED_LISTENERS"])
	ports := map[string]bool{}
	for _, address := range listeners {
		ports[portOf(address)] = true
	}
	if len(ports) != len(listeners) {
		t.Errorf("two listeners of Kafka have one port: %v", listeners)
	}
	for name, address := range advertised {
		if portOf(listeners[name]) != portOf(address) {
			t.Errorf("Kafka says that %s is at %s, and listens at %s", name, address, listeners[name])
		}
	}
	var mapped []string
	for one := range strings.SplitSeq(env["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"], ",") {
		name, _, _ := strings.Cut(one, ":")
		mapped = append(mapped, name)
	}
	slices.Sort(mapped)
	if names := slices.Sorted(maps.Keys(listeners)); !slices.Equal(mapped, names) {
		t.Errorf("Kafka knows the protocol of %v, and listens as %v", mapped, names)
	}
	if name := env["KAFKA_INTER_BROKER_LISTENER_NAME"]; advertised[name] == "" {
		t.Errorf("brokers meet at %q, which is not advertised", name)
	}
	controller := listeners[env["KAFKA_CONTROLLER_LISTENER_NAMES"]]
	if voter, want := env["KAFKA_CONTROLLER_QUORUM_VOTERS"], fmt.Sprintf("%s@localhost:%s", env["KAFKA_NODE_ID"], portOf(controller)); voter != want {
		t.Errorf("the voters are %s, and the only one is %s", voter, want)
	}
	if roles := env["KAFKA_PROCESS_ROLES"]; roles != "broker,controller" {
		t.Errorf("the only node of Kafka is %q", roles)
	}
}

func composeBroker(t *testing.T) map[string]string {
	t.Helper()
	env := map[string]string{}
	for name, value := range compose(t).Services["kafka"].Environment {
		env[name] = *value
	}
	return env
}

func TestBrokerOfCompose(t *testing.T) {
	env := composeBroker(t)
	checkBroker(t, env)
	ports := compose(t).Services["kafka"].Ports
	if client := endpoints(env["KAFKA_ADVERTISED_LISTENERS"])["CLIENT"]; len(ports) != 1 || client != "localhost:"+ports[0].Published {
		t.Errorf("Kafka says that it is at %s, and is open at %v", client, ports)
	}
}

func TestBrokerOfDemo(t *testing.T) {
	r := render(t, "demo")
	for _, w := range r.workloads(t) {
		if w.name != "kafka" {
			continue
		}
		c := w.containers()[0]
		env := map[string]string{}
		for _, e := range c.Env {
			env[e.Name] = e.Value
		}
		checkBroker(t, env)
		if other := compose(t).Services["kafka"].Image; c.Image != other {
			t.Errorf("Kafka of the demo is %s, that of compose %s", c.Image, other)
		}
		// A variable that is spelt wrong is one that the other does not have.
		if here, there := slices.Sorted(maps.Keys(env)), slices.Sorted(maps.Keys(composeBroker(t))); !slices.Equal(here, there) {
			t.Errorf("Kafka of the demo is told %v, that of compose %v", here, there)
		}
		client := endpoints(env["KAFKA_ADVERTISED_LISTENERS"])["CLIENT"]
		if len(c.Ports) != 1 || portOf(client) != strconv.Itoa(int(c.Ports[0].ContainerPort)) {
			t.Errorf("Kafka listens at %s, and the port of its container is %v", client, c.Ports)
		}
		if !slices.ContainsFunc(of[*corev1.Service](r), func(s *corev1.Service) bool {
			return client == fmt.Sprintf("%s:%d", s.Name, s.Spec.Ports[0].Port)
		}) {
			t.Errorf("Kafka says that it is at %s, where no Service is", client)
		}
		return
	}
	t.Error("the demo has no kafka")
}
