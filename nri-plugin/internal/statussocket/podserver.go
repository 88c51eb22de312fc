// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"net/http"
	"sync/atomic"

	"tailscale-nri/engine"
)

// podServer is the serving process's side. It is the zero value until there is an
// engine.
type podServer struct{ handler atomic.Pointer[http.Handler] }

// Serves notes that there is an engine.
func (s *podServer) Serves(api http.Handler) { s.handler.Store(&api) }

// register has the mux answer about pods. ready says why there is no engine to ask.
func (s *podServer) register(mux *http.ServeMux, ready func() (bool, string)) {
	mux.HandleFunc(engine.PodAPIPrefix, func(w http.ResponseWriter, r *http.Request) {
		if h := s.handler.Load(); h != nil {
			(*h).ServeHTTP(w, r)
			return
		}
		_, why := ready()
		http.Error(w, "this process serves no pods: "+why, http.StatusServiceUnavailable)
	})
}
