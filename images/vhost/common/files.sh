# shellcheck shell=bash
disk() { jq -r --arg name "$1" '.disks[] | select(.name == $name) | .'"$2" /etc/vhost/vhost.json; } # disk NAME KEY

# file_of NAME   its backing file, sparse, made where it is missing; one of another size is somebody's data. A block device
# is seen by the target alone, which says when it is gone; its size was looked at before (scripts/devices.sh)
file_of() {
  local file bytes
  file=$(disk "$1" file) bytes=$(($(jq .mib /etc/vhost/vhost.json) << 20))
  if [[ "$file" == /dev/* ]]; then
    :
  elif [ ! -e "$file" ]; then
    truncate -s "$bytes" "$file.new"
    mv "$file.new" "$file"
  elif [ "$(stat -c %s "$file")" != "$bytes" ]; then
    echo "$file has $(stat -c %s "$file") bytes, and vhost.diskMib says $bytes: nothing is changed on it; set vhost.diskMib to its size, or move the file away" >&2
    return 1
  fi
  printf '%s\n' "$file"
}

# alone   one target at a time: a pod that is made anew starts while the old one ends, and that one, as it ends, removes
# the sockets by their names. The lock lasts as long as the process that this shell becomes.
alone() {
  local sockets
  sockets=$(jq -r .sockets /etc/vhost/vhost.json)
  exec 9>"$sockets/vhost.lock"
  flock -w 50 9 || {
    echo "another target still serves $sockets after 50 s" >&2
    return 1
  }
}
