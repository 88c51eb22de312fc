// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/internal/proc"
)

// metricsAddr is where the plugin serves metrics in the scrape part, on its host's loopback.
const metricsAddr = "127.0.0.1:9464"

// scrapes are how many are measured of each encoding, one after the other.
const scrapes = 25

// scrapeCost reads what the plugin's metrics cost with the greatest of cfg.Pods, in each shape of tailnet: what the
// process uses that serves them to nobody, to be compared with the memory part's, which serves none; and time, size,
// allocations and CPU time of a scrape.
func scrapeCost(ctx context.Context, cfg Config, r *report) error {
	pods := slices.Max(cfg.Pods)
	for _, shape := range cfg.Shapes {
		err := onTailnet(ctx, cfg.Lab, func(t *tailnet) error {
			if err := t.plane.SetApart(ctx, shape == shapeApart); err != nil {
				return err
			}
			h, err := t.addHost(ctx, 0, "TS_METRICS_ADDR="+metricsAddr)
			if err != nil {
				return err
			}
			if err := h.joinAll(ctx, 0, pods); err != nil {
				return err
			}
			of := fmt.Sprintf("shape=%s/pods=%d", shape, pods)
			if err := h.idle(ctx, cfg, "Idle/"+of, ofServed, r); err != nil {
				return err
			}
			for _, encoding := range []string{"identity", "gzip"} { // the second is what Prometheus asks for
				if err := h.measureScrapes(ctx, "Scrape/"+of, encoding, pods, r); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", shape, err)
		}
	}
	return nil
}

// measureScrapes scrapes the host's plugin over one connection, as Prometheus does.
func (h *host) measureScrapes(ctx context.Context, name, encoding string, pods int, r *report) error {
	transport := &http.Transport{DialContext: h.Dial, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body, err := scrape(ctx, client, "identity") // also opens the connection
	if err != nil {
		return err
	}
	if up := strings.Count(body, "\ntailscale_nri_pod_up{"); up != pods {
		return fmt.Errorf("a scrape has %d pods, want %d", up, pods)
	}
	allocated, err := allocatedIn(body)
	if err != nil {
		return err
	}
	pid := h.plugin.Serving()
	used, err := proc.CPUTime(pid)
	if err != nil {
		return err
	}
	for range scrapes {
		begin := time.Now()
		body, err := scrape(ctx, client, encoding)
		if err != nil {
			return err
		}
		r.add(name, encoding, measured{unitMillis: time.Since(begin).Seconds() * 1000, unitBody: float64(len(body)) / 1024})
	}
	usedNow, err := proc.CPUTime(pid)
	if err != nil {
		return err
	}
	if body, err = scrape(ctx, client, "identity"); err != nil {
		return err
	}
	allocatedNow, err := allocatedIn(body)
	if err != nil {
		return err
	}
	// Each scrape reads what was allocated before its own answer was written: between two of them is one scrape.
	r.add(name, encoding, measured{
		unitAllocated: (allocatedNow - allocated) / (scrapes + 1) / (1 << 20),
		unitScrapeCPU: (usedNow - used).Seconds() * 1000 / scrapes,
	})
	for _, unit := range []string{unitMillis, unitBody, unitAllocated, unitScrapeCPU} {
		r.figure(fmt.Sprintf("scrape_%s_%s/%s", encoding, unit, name), name, encoding, unit, 0.5)
	}
	return nil
}

// scrape returns the answer as it was sent.
func scrape(ctx context.Context, client *http.Client, encoding string) (body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept-Encoding", encoding)
	res, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("scraping the plugin: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the answer is %s: %s", res.Status, text)
	}
	if err != nil {
		return "", fmt.Errorf("scraping the plugin: %w", err)
	}
	return string(text), nil
}

// allocatedIn is what a scrape says that the process has allocated so far, in bytes.
func allocatedIn(body string) (float64, error) {
	_, rest, _ := strings.Cut(body, "\ngo_memstats_alloc_bytes_total ")
	text, _, _ := strings.Cut(rest, "\n")
	bytes, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("reading go_memstats_alloc_bytes_total of a scrape: %w", err)
	}
	return bytes, nil
}
