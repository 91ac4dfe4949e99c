# shellcheck shell=bash
# Reserves hugepages for the vhost target and the VM, before kubelet starts, which counts them at its start. A server's
# idle pages are taken first and the rest is added; only what was added is given back.
# in: HUGEPAGES ("SIZE=COUNT SIZE@CORES=COUNT …", SIZE 2Mi or 1Gi; CORES: on the NUMA node of these)
kept=$STATE/hugepages       # a line "PLACE HAD ADDED OTHERS" each (see lib.sh): ours, of them added; in use by others before
begun=$STATE/hugepages.from # "PLACE TOTAL" from before the change that is being made
boot=$STATE/hugepages.boot  # the boot of the machine that both are true for
boot_id=/proc/sys/kernel/random/boot_id

step() {
  local place places wanted had added others
  [ "$1" != down ] || HUGEPAGES=
  if ! grep -qsxf "$boot_id" "$boot"; then # a boot takes all pages away
    rm -f "$kept" "$begun"
    install -d "$STATE"
    cat "$boot_id" >"$boot"
  fi
  take_back
  # first more, then less: a host that cannot give more keeps what it has
  mapfile -t places < <({ wants && cat "$kept" 2>/dev/null; } | cut -d' ' -f1 | sort -u)
  for place in "${places[@]}"; do
    recall "$place"
    ((wanted <= had)) || grow "$place"
  done
  for place in "${places[@]}"; do
    recall "$place"
    ((wanted >= had)) || shrink "$place"
  done
  if [ "$1" = down ]; then
    systemctl disable --quiet spdk-k8s-hugepages 2>/dev/null || true
    rm -f "$kept" "$begun" "$boot" /etc/systemd/system/spdk-k8s-hugepages.service
    return
  fi
  at_boot
  if older kubelet "$kept"; then systemctl try-restart kubelet; fi
}

# wants   a line "PLACE COUNT" for each entry of HUGEPAGES; two may be of one place
wants() {
  local pair
  for pair in $HUGEPAGES; do echo "$(hugepages_on "${pair%=*}") ${pair#*=}"; done
}

# recall PLACE   sets wanted, had, added, others
recall() {
  local line
  wanted=$(wants | awk -v place="$1" '$1 == place {sum += $2} END {print sum + 0}')
  line=$(grep -s "^$1 " "$kept") || line="$1 0 0"
  read -r _ had added others <<<"$line"
}

# note PLACE HAD ADDED OTHERS
note() {
  {
    grep -sv "^$1 " "$kept" || true
    [ "$2" = 0 ] || echo "$@"
  } | write 0644 "$kept" || true
  rm -f "$begun"
}

# Undoes a change that was cut off before it was noted.
take_back() {
  local size total
  read -r size total < <(cat "$begun" 2>/dev/null) || return 0
  echo "$total" >"$(hugepages_folder "$size")/nr_hugepages"
  rm -f "$begun"
}

# more PLACE NUMBER   NUMBER may be negative; prints how many the kernel really added
more() {
  local dir before
  dir=$(hugepages_folder "$1")
  before=$(total "$dir")
  [ -e "$begun" ] || write 0644 "$begun" <<<"$1 $before" || true
  echo $((before + $2)) >"$dir/nr_hugepages"
  echo $(($(total "$dir") - before))
}
total() { echo $(($(cat "$1/nr_hugepages") - $(cat "$1/surplus_hugepages"))); } # surplus: given back, but still in use

grow() {
  local dir idle spare missing got=0 available
  dir=$(hugepages_folder "$1")
  [ -w "$dir/nr_hugepages" ] || fail "hugepages of $1: $(hostname) has none; mend: pulumi config set --path vhost.hugepageSize 2Mi (or none)"
  idle=$(idle_hugepages "$1")
  others=${others:-$(($(total "$dir") - idle))}
  spare=$(($(total "$dir") - others - had)) # of the idle ones, these are not ours already
  ((spare <= idle)) || spare=$idle
  missing=$((wanted - had - (spare > 0 ? spare : 0)))
  ((missing > 0)) || missing=0
  available=$(available "$1")
  # else nothing is tried: the kernel would take memory from all others
  ((available < missing * $(hugepage_mib "$1"))) || got=$(more "$1" "$missing")
  if ((got < missing)); then
    more "$1" "-$got" >/dev/null
    rm -f "$begun"
    fail "hugepages of $1: $missing are wanted beside the $(cat "$dir/nr_hugepages") that are there, and $(hostname) can give $got of its $available MiB of free memory;" \
      "mend: give it more free memory, $(is_container || echo "or reserve them at boot (hugepagesz=${1%%i*} hugepages=…), ")or make vhost.memoryMib or vm.memoryMib smaller"
  fi
  note "$1" "$wanted" $((added + missing)) "$others"
  say "reserved $((wanted - had)) hugepages of $1, $missing of them added"
}

# available PLACE   MiB of memory that the kernel can make pages of; of a NUMA node it tells only the parts
available() {
  if [[ "$1" = *@* ]]; then
    awk '$3 == "MemFree:" || $3 == "Inactive(file):" {sum += $4} END {print int(sum / 1024)}' "${SYS:-/sys}/devices/system/node/node${1#*@}/meminfo"
  else
    awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo
  fi
}

shrink() {
  local less=$((had - wanted))
  ((less <= added)) || less=$added
  more "$1" "-$less" >/dev/null
  note "$1" "$wanted" $((added - less)) "$others"
  say "released $((had - wanted)) hugepages of $1, $less of them given back"
}

# A unit that adds the pages again after the machine's boot; they outlive the restart of a container.
at_boot() {
  local size added
  {
    printf '[Unit]\nDescription=Hugepages of the vhost target and the worker VM\nBefore=kubelet.service spdk-k8s-vm.service\n'
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\n'
    printf 'ExecCondition=/bin/sh -c "! grep -qsxf %s %s"\n' "$boot_id" "$boot"
    while read -r size _ added _; do
      # shellcheck disable=SC2016 # for the unit's shell
      printf 'ExecStart=/bin/sh -c "cd %s; n=$$(cat nr_hugepages); all=$$((n + %s)); echo $$all >nr_hugepages; [ $$(cat nr_hugepages) = $$all ] || { echo $$n >nr_hugepages; false; }"\n' \
        "$(hugepages_folder "$size")" "$added"
    done <"$kept"
    printf 'ExecStartPost=/bin/cp %s %s\n' "$boot_id" "$boot"
    printf '[Install]\nWantedBy=multi-user.target\n'
  } | write 0644 /etc/systemd/system/spdk-k8s-hugepages.service || true
  units_changed spdk-k8s-hugepages
  enable spdk-k8s-hugepages
}
