// Package upstream is the shipping API.
package upstream
