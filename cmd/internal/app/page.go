package app

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"
)

// The status page is one document: its style and script stand in it, so that it
// loads nothing, and the policy below names them by their hashes, so that
// nothing else runs in it.
var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
		"style":  func() template.CSS { return template.CSS(pageCSS) }, //nolint:gosec // our own file
		"script": func() template.JS { return template.JS(pageJS) },    //nolint:gosec // our own file
	}).Parse(pageHTML))

	contentSecurityPolicy = strings.Join([]string{
		"default-src 'none'",
		"style-src " + hashSource(pageCSS),
		"script-src " + hashSource(pageJS),
		"connect-src 'self'",
		"base-uri 'none'",
		"form-action 'none'",
		"frame-ancestors 'none'",
	}, "; ")
)

func hashSource(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// servePage renders the status for a person. The script in the page keeps it
// fresh; without scripts it shows the moment at which it was loaded.
func (c *Connector) servePage(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, c.Status()); err != nil {
		c.log.Error("the status page cannot be shown", "err", err)
		http.Error(w, fmt.Sprintf("the status page cannot be shown: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // a client that has gone does not matter
}
