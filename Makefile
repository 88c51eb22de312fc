# tailscale-nri: what a new user runs is "make demo" and "make test".

# What this program never does is left out of tailscale.com. Some of it is left
# out because it must not be there: Serve, SSH, the PeerAPI server and C2N act
# in the daemon's namespaces, not in the pod's, and the engine refuses to start
# in a binary that has them.
OMIT := ace acme advertiseexitnode advertiseroutes appconnectors aws bird c2n \
	captiveportal capture cli cliconndiag clientmetrics clientupdate cloud \
	colorable completion completion_scripts conn25 dbus debug debugeventbus \
	debugportmapper desktop_sessions dns doctor drive flashappliance gro \
	hujsonconf identityfederation iptables kube linkspeed linuxdnsfight \
	listenrawdisco logtail netlog netstack networkmanager oauthkey osrouter \
	outboundproxy peerapiserver portlist portmapper posture \
	qrcodes relayserver remoteconfig resolved routecheck runtimemetrics \
	sdnotify serve serviceclientprefs ssh synology syslog syspolicy systray \
	taildrop tap tpm tundevstats unixsocketidentity useexitnode wakeonlan \
	webbrowser webclient
comma := ,
space := $(subst ,, )
TAGS := $(subst $(space),$(comma),$(strip $(addprefix ts_omit_,$(OMIT))))
