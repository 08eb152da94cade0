"""How each peer is configured: what writes its files and gives its command line."""

import subprocess

import cases
import machine


def allowed():
    """The names of the allowlist; peers take each with everything below it."""
    return [*cases.allowed_names(), *cases.WILDCARDS]


def lines(pattern, names):
    return "\n".join(pattern.format(name) for name in names)


def unbound(setting):
    certificate, key = setting.identity
    tls = f"""  interface: 127.0.0.1@{setting.tls_port}
  tls-port: {setting.tls_port}
  tls-service-pem: "{certificate}"
  tls-service-key: "{key}"
""" if setting.tls else ""
    restricted = f'  local-zone: "." refuse\n{lines("  local-zone: {}. transparent", allowed())}' if setting.allowlist else ""
    setting.write("unbound.conf", f"""
server:
  interface: 127.0.0.1@{setting.port}
{tls}
  num-threads: 1
  incoming-num-tcp: 100
  username: ""
  chroot: ""
  directory: "{setting.directory}"
  pidfile: "{setting.directory}/unbound.pid"
  use-syslog: no
  logfile: "{setting.directory}/unbound.log"
  log-replies: {"yes" if setting.log else "no"}
  access-control: 127.0.0.0/8 allow
  do-not-query-localhost: no
  module-config: "iterator"
  minimal-responses: yes
  so-rcvbuf: 4m
  so-sndbuf: 4m
  msg-cache-size: 128m
  rrset-cache-size: 256m
  num-queries-per-thread: 4096
  outgoing-range: 8192
{restricted}
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{setting.upstream}
remote-control:
  control-enable: no
""")
    return ["unbound", "-d", "-c", "unbound.conf"]


def dnsmasq(setting):
    server = f"127.0.0.1#{setting.upstream}"
    # A name without a server is refused.
    servers = lines("server=/{}/" + server, allowed()) if setting.allowlist else f"server={server}"
    # A table of its own: an element that is there already would cost less.
    table = f"dnsmasq{setting.port}"
    if setting.row.firewall:
        opened = f"add table inet {table}\nadd set inet {table} opened {{ type ipv4_addr; flags timeout; timeout 6m; size 2097152; }}\n"
        subprocess.run([machine.which("nft"), "-f", "-"], input=opened, text=True, check=True)
    setting.write("dnsmasq.conf", f"""
port={setting.port}
listen-address=127.0.0.1
bind-interfaces
user=root
no-resolv
no-hosts
no-daemon
cache-size=100000
dns-forward-max=10000
{servers}
{f"nftset=/open.example.net/4#inet#{table}#opened" if setting.row.firewall else ""}
{f"log-queries{chr(10)}log-facility={setting.directory}/dnsmasq.log" if setting.log else ""}
""")
    return ["dnsmasq", "-C", "dnsmasq.conf"]


def dnsdist(setting):
    restricted = ""
    if setting.allowlist:
        setting.write("allowed.txt", "\n".join(allowed()))
        restricted = f"""
allowed = newSuffixMatchNode()
for name in io.lines("{setting.directory}/allowed.txt") do allowed:add(newDNSName(name)) end
addAction(NotRule(SuffixMatchNodeRule(allowed)), RCodeAction(DNSRCode.REFUSED))"""
    # Text, appended, buffered, always.
    log = f'addAction(AllRule(), LogAction("{setting.directory}/dnsdist.log", false, true, true, false))' if setting.log else ""
    setting.write("dnsdist.conf", f"""
setSecurityPollSuffix("")
setLocal("127.0.0.1:{setting.port}")
setUDPMultipleMessagesVectorSize(64)
setMaxUDPOutstanding(65535)
newServer({{address="127.0.0.1:{setting.upstream}", healthCheckMode="up"}})
getPool(""):setCache(newPacketCache(100000, {{maxTTL=3600}}))
{log}
{restricted}
""")
    return ["dnsdist", "--supervised", "--disable-syslog", "-C", "dnsdist.conf"]


def kresd(setting):
    forward = f"policy.STUB('127.0.0.1@{setting.upstream}')"
    rules = f"policy.add(policy.all({forward}))"
    if setting.allowlist:
        setting.write("allowed.txt", "\n".join(allowed()))
        rules = f"""
local names = {{}}
for name in io.lines('{setting.directory}/allowed.txt') do table.insert(names, todname(name)) end
policy.add(policy.suffix({forward}, names))
policy.add(policy.all(policy.REFUSE))"""
    tls = f"""
net.listen('127.0.0.1', {setting.tls_port}, {{ kind = 'tls' }})
net.tls('{setting.identity[0]}', '{setting.identity[1]}')""" if setting.tls else ""
    log = ""
    if setting.log:
        log = f"""
modules.load('dnstap')
dnstap.config({{ socket_path = '{setting.collector}', client = {{ log_responses = true }} }})"""
    setting.write("kresd.conf", f"""
net.ipv6 = false
net.listen('127.0.0.1', {setting.port}, {{ kind = 'dns' }})
{tls}
trust_anchors.remove('.')
modules.unload('priming')
modules.unload('ta_update')
modules.unload('ta_signal_query')
cache.open(256 * MB, 'lmdb://{setting.directory}/cache')
{rules}
{log}
""")
    return ["kresd", "-n", "-c", "kresd.conf", setting.directory]


def pdns_recursor(setting):
    lua = ""
    if setting.allowlist:
        passed = lines("{0} CNAME rpz-passthru.\n*.{0} CNAME rpz-passthru.", allowed())
        setting.write("allowed.rpz", f"$TTL 60\n$ORIGIN allowed.\n@ SOA . . 1 60 60 60 60\n@ NS .\n{passed}\n* CNAME .\n")
        lua += f'rpzFile("{setting.directory}/allowed.rpz", {{policyName="allowed"}})\n'
    if setting.log:
        lua += f'protobufServer("127.0.0.1:{setting.collector}", {{logQueries=false, logResponses=true}})\n'
    setting.write("rules.lua", lua)
    setting.write("recursor.conf", f"""
local-address=127.0.0.1
local-port={setting.port}
config-dir={setting.directory}
socket-dir={setting.directory}
lua-config-file={setting.directory}/rules.lua
threads=1
pdns-distributes-queries=no
forward-zones-recurse=.=127.0.0.1:{setting.upstream}
dont-query=
dnssec=off
quiet=yes
loglevel=4
disable-syslog=yes
security-poll-suffix=
max-mthreads=8192
max-cache-entries=1000000
max-packetcache-entries=500000
daemon=no
""")
    return ["pdns_recursor", f"--config-dir={setting.directory}"]
