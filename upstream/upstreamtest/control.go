package upstreamtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// controlPrefix is where the control API is, among the paths of the API itself.
const controlPrefix = "/__sim"

// ControlHandler returns the control API, with paths that begin at /. The
// simulator serves it under /__sim/, too, unless that is turned off; a second
// listener for it has the advantage that it works while the API refuses
// connections.
func (s *Simulator) ControlHandler() http.Handler {
	m := &controlMux{}
	m.handle("GET /state", func(r *http.Request) (any, error) {
		if r.FormValue("format") == "yaml" {
			return scenarioFile(s.Dump()), nil
		}
		return plain(s.Dump())
	})
	m.handle("GET /stats", func(*http.Request) (any, error) { return s.Stats(), nil })
	m.handle("GET /verify", func(*http.Request) (any, error) {
		return map[string]any{"violations": append([]Violation{}, s.Verify()...)}, nil
	})
	m.handle("GET /journal", s.controlJournal)
	m.handle("DELETE /journal", func(*http.Request) (any, error) { s.journal.Reset(); return done, nil })

	m.handle("POST /accounts", addAll(s.AddAccount, (*Account).validate))
	m.handle("POST /shops", addAll(s.AddShop, (*Shop).validate))
	m.handle("POST /trades", addAll(s.AddTrade, (*Trade).validate))
	m.handle("POST /waybills", addAll(s.AddWaybill, (*Waybill).validate))
	m.handle("POST /carriers", addAll(s.AddCarrier, (*Carrier).validate))
	m.handle("POST /faults", addAll(s.AddFault, (*Fault).Validate))
	m.handle("POST /scripts", addAll(s.AddScript, (*Script).Validate))
	m.handle("POST /outages", addAll(s.AddOutage, (*Outage).validate))
	m.handle("GET /faults", func(*http.Request) (any, error) {
		list, scripts := s.faults.remaining()
		return plain(map[string]any{"faults": list, "scripts": scripts})
	})
	m.handle("DELETE /faults", func(*http.Request) (any, error) { s.ClearFaults(); return done, nil })

	m.handle("PUT /latency", setOne(s.SetLatency, Latency.validate))
	m.handle("PUT /rate", setOne(s.SetRate, Rate.validate))
	m.handle("PUT /switches", setOne(s.SetSwitches, func(sw Switches) error { return sw.validate() }))
	m.handle("PUT /down", s.controlDown)
	m.handle("POST /clock", func(r *http.Request) (any, error) {
		var body struct {
			Advance time.Duration `yaml:"advance"`
		}
		err := decode(r.Body, &body)
		if err == nil {
			s.Advance(body.Advance)
		}
		return map[string]any{"now": s.Now()}, err
	})
	s.controlAccounts(m)
	s.controlShops(m)
	s.controlTrades(m)
	m.handle("GET /{$}", func(*http.Request) (any, error) { return map[string]any{"operations": m.patterns}, nil })
	return &m.ServeMux
}

func (s *Simulator) controlAccounts(m *controlMux) {
	m.handle("POST /accounts/{name}/topup", func(r *http.Request) (any, error) {
		var body struct {
			Points int64 `yaml:"points"`
		}
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		return done, s.TopUp(r.PathValue("name"), body.Points)
	})
	m.handle("POST /accounts/{name}/rotate", func(r *http.Request) (any, error) {
		token, err := s.RotateToken(r.PathValue("name"))
		return map[string]any{"token": token}, err
	})
	m.handle("POST /accounts/{name}/token", func(r *http.Request) (any, error) {
		var body struct {
			Token string `yaml:"token"`
		}
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		return done, s.SetToken(r.PathValue("name"), body.Token)
	})
	m.handle("POST /accounts/{name}/deny", func(r *http.Request) (any, error) {
		var body struct {
			Endpoints []string `yaml:"endpoints"`
		}
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		return done, s.Deny(r.PathValue("name"), body.Endpoints...)
	})
}

func (s *Simulator) controlShops(m *controlMux) {
	for name, do := range map[string]func(string) error{
		"authorise": s.Authorise, "unauthorise": s.Unauthorise, "expire-session": s.ExpireSession,
	} {
		m.handle("POST /shops/{id}/"+name, func(r *http.Request) (any, error) { return done, do(r.PathValue("id")) })
	}
}

func (s *Simulator) controlTrades(m *controlMux) {
	const path = "/trades/{shop}/{tid}"
	m.handle("GET "+path, func(r *http.Request) (any, error) {
		t, ok := s.Trade(r.PathValue("shop"), r.PathValue("tid"))
		if !ok {
			return nil, errNoSuchTrade
		}
		return plain(t)
	})
	for name, do := range map[string]func(shop, tid string) error{
		"pay": s.Pay, "cancel": s.Cancel, "hold": s.Hold, "release": s.Release, "confirm": s.Confirm,
	} {
		m.handle("POST "+path+"/"+name, func(r *http.Request) (any, error) {
			return done, do(r.PathValue("shop"), r.PathValue("tid"))
		})
	}
	var parts struct {
		OIDs    []string `yaml:"oids"`
		Company string   `yaml:"company"`
		OutSID  string   `yaml:"out_sid"`
	}
	m.handle("POST "+path+"/refund", func(r *http.Request) (any, error) {
		body := parts
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		return done, s.Refund(r.PathValue("shop"), r.PathValue("tid"), body.OIDs...)
	})
	m.handle("POST "+path+"/ship", func(r *http.Request) (any, error) {
		body := parts
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		return done, s.ShipByHand(r.PathValue("shop"), r.PathValue("tid"), body.Company, body.OutSID, body.OIDs...)
	})
}

// controlJournal lists requests: of an order, or only those after the given
// number, and at most so many of the last ones.
func (s *Simulator) controlJournal(r *http.Request) (any, error) {
	number := func(name string, byDefault int) (int, error) {
		if r.FormValue(name) == "" {
			return byDefault, nil
		}
		n, err := strconv.Atoi(r.FormValue(name))
		if err != nil || n < 0 {
			return 0, fmt.Errorf("upstreamtest: %s is a number", name)
		}
		return n, nil
	}
	since, err1 := number("since", 0)
	limit, err2 := number("limit", 1000)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	tid, shop := r.FormValue("tid"), r.FormValue("shop")
	list := s.journal.filter(func(e *Entry) bool {
		return e.N > since && (tid == "" || e.Shipment.TID == tid) && (shop == "" || e.Shipment.ShopID == shop)
	})
	if len(list) > limit {
		list = list[len(list)-limit:]
	}
	return append([]Entry{}, list...), nil
}

// controlDown puts the API out of order, for a time or until told otherwise.
func (s *Simulator) controlDown(r *http.Request) (any, error) {
	var body struct {
		Mode Down          `yaml:"mode"`
		For  time.Duration `yaml:"for"`
	}
	if err := decode(r.Body, &body); err != nil {
		return nil, err
	}
	if err := oneOf("mode", body.Mode, Unavailable, Refusing); err != nil {
		return nil, err
	}
	if body.For <= 0 {
		s.SetDown(body.Mode)
		return done, nil
	}
	from := time.Since(s.started)
	o := Outage{From: from, To: from + body.For, Mode: body.Mode}
	if err := o.validate(); err != nil {
		return nil, err
	}
	s.AddOutage(o)
	return done, nil
}

var (
	errNoSuchTrade = errors.New("upstreamtest: there is no such order")

	// done is the answer where there is nothing to say.
	done = map[string]bool{"ok": true}
)

// controlMux is a mux that remembers what it serves.
type controlMux struct {
	http.ServeMux

	patterns []string
}

// handle registers an operation: it answers in JSON what do returns, or the
// error with HTTP status 400.
func (m *controlMux) handle(pattern string, do func(*http.Request) (any, error)) {
	m.patterns = append(m.patterns, pattern)
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxScenario)
		result, err := do(r)
		if file, ok := result.(scenarioFile); ok && err == nil {
			w.Header().Set("Content-Type", "application/yaml")
			// The reader of the answer sees if it is cut short.
			_ = WriteScenario(w, Options(file))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			result = map[string]string{"error": err.Error()}
		}
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(result) // as above
	})
}

// scenarioFile is an answer in YAML.
type scenarioFile Options

// addAll makes an operation that adds one thing or a list of them, all or none.
func addAll[T any](add func(T), validate func(*T) error) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var body oneOrMany[T]
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		var errs []error
		for i := range body {
			errs = append(errs, validate(&body[i]))
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		for _, v := range body {
			add(v)
		}
		return map[string]int{"added": len(body)}, nil
	}
}

// setOne makes an operation that replaces a setting.
func setOne[T any](set func(T), validate func(T) error) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var body T
		if err := decode(r.Body, &body); err != nil {
			return nil, err
		}
		if err := validate(body); err != nil {
			return nil, err
		}
		set(body)
		return done, nil
	}
}

// oneOrMany is a list that may be written as its only element.
type oneOrMany[T any] []T

// UnmarshalYAML decodes a list or one element.
func (l *oneOrMany[T]) UnmarshalYAML(node *yaml.Node) error {
	// A node decodes without the decoder's strictness about names; a decoder of
	// its own keeps it.
	text, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	if node.Kind == yaml.SequenceNode {
		return decode(strings.NewReader(string(text)), (*[]T)(l))
	}
	*l = make([]T, 1)
	return decode(strings.NewReader(string(text)), &(*l)[0])
}

// plain returns a value with the names of its yaml tags, for an encoder of
// JSON.
func plain(v any) (any, error) {
	text, err := yaml.Marshal(v)
	if err != nil {
		return nil, err
	}
	var generic any
	err = yaml.Unmarshal(text, &generic)
	return generic, err
}
