# shellcheck shell=bash
# Asks the disk agent of this host, which does the work, until it is done; what it waits for, and why, is the error.
# in: VM (its name on this host) DISKS (their ordinals) CONFIG (digest of vhost.json) TARGET (Deployment of the agent)
#     WHICH: plugged, until the VM has these DISKS; released, nobody uses others any more, until they are out of the VM
step() {
  [ "$1" = up ] || return 0
  local ask=(curl -sS --noproxy '*' --unix-socket /run/spdk-k8s/agent.sock) answer code
  wait_for 60 "the disk agent of $(hostname) to answer; its log: kubectl -n spdk-k8s logs deploy/$TARGET" "${ask[@]}" -f http://agent/started
  local query="vm=$VM&config=$CONFIG&seconds=170"
  case $WHICH in
  plugged) ask+=("http://agent/wait?$query&disks=$DISKS") ;;
  released) ask+=(-X POST "http://agent/release?$query&keep=$DISKS") ;;
  esac
  answer=$("${ask[@]}" -w '\n%{http_code}') || fail "the disk agent of $(hostname) went away; make up again"
  code=${answer##*$'\n'}
  [ "$code" = 200 ] || fail "waited 170 s on $(hostname): ${answer%$'\n'*}see also: kubectl -n spdk-k8s logs deploy/$TARGET"
}
