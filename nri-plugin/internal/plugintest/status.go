// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"net"
	"net/http"
	"path/filepath"
	"testing"
)

// AnswerStatus is a process that answers on a socket.
func AnswerStatus(t *testing.T, answer http.HandlerFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "status.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: answer}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.Serve(ln) }()
	return socket
}
