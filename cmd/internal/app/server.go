package app

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"packship/consumer"
	"packship/upstream"
)

// Handler returns the HTTP side of the connector: probes, metrics, the status as
// a page and as JSON, the life of an order, and the operator's actions.
func (c *Connector) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", c.serveHealth)
	mux.HandleFunc("GET /readyz", c.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /api/status", c.serveStatus)
	orderJSON, orderPage := c.orderHandlers()
	mux.HandleFunc("GET /api/orders/{tid}", orderJSON)
	mux.HandleFunc("GET /orders", orderPage)
	mux.HandleFunc("GET /{$}", c.servePage)
	mux.HandleFunc("POST /api/accounts/{name}/resume", c.admin(c.resume))
	mux.HandleFunc("POST /api/shops/{id}/unpark", c.admin(c.unpark))
	return secured(mux)
}

// secured sets the headers that keep browsers from doing more than they are
// asked.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		next.ServeHTTP(w, r)
	})
}

// serveHealth says that the process is alive: its loops turn. It does not depend
// on Kafka or the API, since killing the process would not bring them back.
func (c *Connector) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if ok, why := c.alive(); !ok {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	writeText(w, "ok\n")
}

// alive reports whether all loops turn that exist by now, and if not, which does
// not. What is asked here must not wait for the locks that a loop that stands
// still may hold.
func (c *Connector) alive() (bool, string) {
	c.mu.Lock()
	broken, memory, reader := c.broken, c.ledger, c.reader
	c.mu.Unlock()
	if broken != nil {
		return false, broken.Error()
	}
	checks := []func() (bool, string){c.watchdog.alive, c.api.Alive}
	if memory != nil {
		checks = append(checks, memory.Alive)
	}
	if reader != nil {
		checks = append(checks, reader.Alive)
	}
	for _, check := range checks {
		if ok, why := check(); !ok {
			return false, why
		}
	}
	return true, ""
}

// serveReady says whether the replica does its part. A standby does, and so does
// one whose account is halted: what there is to say of that follows the ok.
func (c *Connector) serveReady(w http.ResponseWriter, _ *http.Request) {
	if ok, why := c.Ready(); !ok {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	var text strings.Builder
	st := c.Status()
	fmt.Fprintf(&text, "ok\n%s\n", st.Health)
	for _, n := range st.Notices {
		fmt.Fprintf(&text, "%s: %s; ends: %s", n.Kind, n.Text, n.Ends)
		if n.Do != "" {
			fmt.Fprintf(&text, "; do: %s", n.Do)
		}
		text.WriteByte('\n')
	}
	writeText(w, text.String())
}

func (c *Connector) serveStatus(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, c.Status())
}

// admin lets a request through that shows the admin token. Without such a token
// in the settings there are no actions at all.
//
// Another site cannot make a browser show the token: there is no cookie, and a
// header needs a leave that packship gives to nobody. Browsers that say that it
// is another site that asks are turned away all the same. The Origin is not
// compared, because a proxy may call this host by another name.
func (c *Connector) admin(action http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
			writeError(w, http.StatusForbidden, "another site asks for this; use the status page, or a program that is no browser")
			return
		}
		want, err := c.settings.adminToken()
		if err != nil {
			setting := variable("ADMIN_TOKEN_FILE")
			c.log.Error("the admin token cannot be read", "setting", setting, "err", err)
			writeError(w, http.StatusServiceUnavailable, "the file that "+setting+" names cannot be used; the log says why, and it is read again for every request")
			return
		}
		if want == "" {
			writeError(w, http.StatusNotFound, "actions are off; set "+variable("ADMIN_TOKEN")+" to allow them")
			return
		}
		scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || !sameSecret(strings.TrimSpace(got), want.Reveal()) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="packship"`)
			writeError(w, http.StatusUnauthorized, "the admin token is missing or wrong; send it as Authorization: Bearer")
			return
		}
		action(w, r)
	}
}

// adminToken returns the token of the operator's actions, "" if they are off.
func (s *Settings) adminToken() (Secret, error) {
	if s.AdminTokenFile == "" {
		return s.AdminToken, nil
	}
	return readSecret(s.AdminTokenFile)
}

// sameSecret compares in a time that tells neither the length nor a common
// beginning.
func sameSecret(got, want string) bool {
	g, w := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(g[:], w[:]) == 1
}

// action is the answer to an operator who asked for something.
type action struct {
	Account string `json:"account,omitempty"`
	ShopID  string `json:"shop_id,omitempty"`
	Did     string `json:"did"`
	// Note says why nothing comes of it, "" if something does.
	Note string `json:"note,omitempty"`
}

func (c *Connector) resume(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	st := c.Status()
	if !c.api.Resume(name) {
		writeError(w, http.StatusNotFound, "no account has that name")
		return
	}
	did := action{Account: name, Did: "resume", Note: st.noResume(name)}
	c.log.Info("an operator has the account resume", "account", name, "note", did.Note)
	writeJSON(w, http.StatusOK, did)
}

func (c *Connector) unpark(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	st := c.Status()
	if !c.api.Unpark(id) {
		writeError(w, http.StatusNotFound, strings.Join(append([]string{"no parked shop has that id"}, st.elsewhere()...), "; "))
		return
	}
	did := action{ShopID: id, Did: "unpark", Note: st.noUnpark(id)}
	c.log.Info("an operator has the shop unparked", "shop_id", id, "note", did.Note)
	writeJSON(w, http.StatusOK, did)
}

// noResume says why nothing comes of a resume, "" if something does.
func (st *Status) noResume(account string) string {
	var because []string
	for i := range st.Accounts {
		switch a := &st.Accounts[i]; {
		case a.Name != account, a.State == upstream.StateHalted:
		case a.State != upstream.StatePaused:
			because = append(because, "the account is not halted")
		case a.Breaker != "closed":
			because = append(because, "the account is not halted but paused by its breaker, which a resume does not close: one order tries the API after its pause")
		}
	}
	return strings.Join(append(because, st.elsewhere()...), "; ")
}

// noUnpark is the same of an unpark.
func (st *Status) noUnpark(shop string) string {
	var because []string
	if !slices.ContainsFunc(st.ParkedShops, func(p upstream.ParkedShop) bool { return p.ShopID == shop }) {
		because = append(because, "the shop is not parked")
	}
	return strings.Join(append(because, st.elsewhere()...), "; ")
}

// elsewhere says whom to ask instead of a replica that stands by.
func (st *Status) elsewhere() []string {
	if st.Role != consumer.RoleStandby {
		return nil
	}
	return []string{"this replica stands by and sends nothing: ask " + st.sender()}
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text)) // a client that has gone does not matter
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a client that has gone does not matter
}

func writeError(w http.ResponseWriter, code int, text string) {
	writeJSON(w, code, map[string]string{"error": text})
}
