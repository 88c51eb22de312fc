// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"tailscale.com/types/key"
)

func marked(t *testing.T, change func(*OAuthConfig)) *OAuth {
	t.Helper()
	cfg := OAuthConfig{ClientID: clientID, ClientSecret: clientSecret, Cluster: "k8s"}
	if change != nil {
		change(&cfg)
	}
	o, err := NewOAuth(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestMark makes devices and look-alikes.
func TestMark(t *testing.T) {
	o := marked(t, nil)
	machine, other := key.NewMachine().Public(), key.NewMachine().Public()
	for _, chosen := range []bool{false, true} {
		lock, ok := o.LockKey(machine, chosen)
		if !ok {
			t.Fatal("no lock key")
		}
		again, _ := marked(t, nil).LockKey(machine, chosen)
		if !lock.Equal(again) {
			t.Error("the next process makes another key")
		}
		device := func(m key.MachinePublic, l key.NLPublic) Device {
			return Device{Name: "k8s-default-web", Hostname: "k8s-default-web", MachineKey: m, LockKey: l}
		}
		ofCluster, _ := marked(t, func(c *OAuthConfig) { c.Cluster = "other" }).LockKey(machine, chosen)
		ofSecret, _ := marked(t, func(c *OAuthConfig) { c.ClientSecret = "tskey-client-other" }).LockKey(machine, chosen)
		ofIdentity, _ := marked(t, func(c *OAuthConfig) { c.ClientSecret, c.IDTokenFile = "", "/token" }).LockKey(machine, chosen)
		for _, test := range []struct {
			name string
			d    Device
			ours bool
		}{
			{"ours", device(machine, lock.Public()), true},
			{"one that copied the lock key", device(other, lock.Public()), false},
			{"one with a lock key of its own", device(machine, key.NewNLPrivate().Public()), false},
			{"another cluster's", device(machine, ofCluster.Public()), false},
			{"one made with another secret", device(machine, ofSecret.Public()), false},
			{"one made with workload identity", device(machine, ofIdentity.Public()), false},
			{"one without a lock key", device(machine, key.NLPublic{}), false},
			{"one without keys", device(key.MachinePublic{}, key.NLPublic{}), false},
		} {
			ours, gotChosen := o.Ours(test.d)
			if ours != test.ours || gotChosen != (test.ours && chosen) {
				t.Errorf("%s, name chosen %v: ours %v, chosen %v", test.name, chosen, ours, gotChosen)
			}
		}
	}
	if k, ok := o.LockKey(key.MachinePublic{}, false); ok || !k.IsZero() {
		t.Error("a node without a machine key is marked")
	}
	nameless := marked(t, func(c *OAuthConfig) { c.Cluster = "" })
	if _, ok := nameless.LockKey(machine, false); ok {
		t.Error("a cluster without a name marks a node")
	}
}

// TestMarkOfIdentity is about what stands in for a secret: all hosts come to
// the same, and no secret of a client's can be it.
func TestMarkOfIdentity(t *testing.T) {
	machine := key.NewMachine().Public()
	federated := func(id string) *OAuth {
		return marked(t, func(c *OAuthConfig) { c.ClientID, c.ClientSecret, c.IDTokenFile = id, "", "/token" })
	}
	o := federated(clientID)
	lock, ok := o.LockKey(machine, true)
	if !ok {
		t.Fatal("no lock key")
	}
	d := Device{MachineKey: machine, LockKey: lock.Public()}
	elsewhere := marked(t, func(c *OAuthConfig) { c.ClientSecret, c.IDTokenFile = "", "/mounted/elsewhere" })
	for name, test := range map[string]struct {
		o    *OAuth
		ours bool
	}{
		"itself":                          {o, true},
		"another host":                    {elsewhere, true},
		"another client":                  {federated("kOther"), false},
		"a client with a secret":          {marked(t, nil), false},
		"a client whose secret is the ID": {marked(t, func(c *OAuthConfig) { c.ClientSecret = clientID }), false},
	} {
		if ours, chosen := test.o.Ours(d); ours != test.ours || chosen != test.ours {
			t.Errorf("%s: ours %v, chosen %v; want %v", name, ours, chosen, test.ours)
		}
	}
}

// TestMarkIsForGood holds the derivation: with another, all devices that there
// are would no longer be ours.
func TestMarkIsForGood(t *testing.T) {
	var machine key.MachinePublic
	if err := machine.UnmarshalText([]byte("mkey:" + strings.Repeat("01", 32))); err != nil {
		t.Fatal(err)
	}
	secret := marked(t, nil)
	identity := marked(t, func(c *OAuthConfig) { c.ClientSecret, c.IDTokenFile = "", "/token" })
	for _, test := range []struct {
		o      *OAuth
		chosen bool
		want   string
	}{
		{secret, false, "tlpub:3ee5765d8f64dbf27038ec3d48e6912a4501dd6231321406d19f9685b1a0b587"},
		{secret, true, "tlpub:7e6119c5fdd9be5ed696c89671b14b96b6e76524b33292429c64dade86a22534"},
		{identity, false, "tlpub:c0a946fa9e53e6305ef736d837079a6b02a05454a0be2e6981774deb4dd315fe"},
		{identity, true, "tlpub:c505fc8bc444a5502cd52a9de036a73dbfea9693b205dd6ca2e07607bb0daf6d"},
	} {
		lock, _ := test.o.LockKey(machine, test.chosen)
		if got := lock.Public().CLIString(); got != test.want {
			t.Errorf("%v, name chosen %v: %s, want %s", test.o, test.chosen, got, test.want)
		}
		signature, err := lock.SignNKS([32]byte{1})
		if err != nil || len(signature) != 64 {
			t.Errorf("signing with it: %d bytes, %v", len(signature), err)
		}
	}
}

func TestRefusal(t *testing.T) {
	o := marked(t, nil)
	static, err := NewStatic(StaticConfig{AuthKey: "tskey-auth-x"})
	if err != nil {
		t.Fatal(err)
	}
	const keyed, tagged, other = "key", "tags", "other"
	for message, kind := range map[string]string{
		"invalid key: API key does not exist":                        keyed,
		"invalid key: API key kAbCNTRL not valid":                    keyed,
		"invalid key: unable to validate API key":                    keyed,
		"authkey already used":                                       keyed,
		"authkey expired":                                            keyed,
		"requested tags [tag:x] are invalid or not permitted":        tagged,
		"node registration rate limited; will retry after 5 seconds": other,
	} {
		for _, test := range []struct {
			tailnet   Tailnet
			want      map[string][]string
			temporary bool
		}{
			{static, map[string][]string{keyed: {"StaticConfig.AuthKey", "reusable"}, tagged: {"StaticConfig.AuthKey", "Node.Tags"}, other: {"refused the node"}}, false},
			{o, map[string][]string{keyed: {"minted", "OAuthConfig.AuthKeyTTL"}, tagged: {"tagOwners"}, other: {"refused the node"}}, kind == keyed},
		} {
			err := test.tailnet.Refusal(message)
			var e *Error
			if !errors.As(err, &e) || e.Temporary != test.temporary {
				t.Errorf("%v, %q: %v, want an *Error, temporary %v", test.tailnet, message, err, test.temporary)
				continue
			}
			checkText(t, err, append(test.want[kind], strings.ReplaceAll(message, " kAbCNTRL", "")))
			if !strings.Contains(e.Err.Error(), message) {
				t.Errorf("the cause is %q, want %q", e.Err, message)
			}
			if has := e.Remedy != ""; has != (kind != other) {
				t.Errorf("%v, %q: remedy %q", test.tailnet, message, e.Remedy)
			}
		}
	}
	if text := fmt.Sprint(static.Refusal("authkey expired")); strings.Contains(text, "tskey") {
		t.Errorf("the key is in %q", text)
	}
}
