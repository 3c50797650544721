# The demo of a room: one stream, four machines. Sourced by scripts/demo, whose image, disks and cleaning up it uses.
# shellcheck shell=bash

readonly CLIENTS_MOST=4
readonly STAGGER=2 # seconds between one client and the next
readonly LOSS=2    # of a hundred packets, on the way to each client
readonly RATE=20M  # bytes per second: single packets to four clients cost one machine much

CLIENTS=()    # process ids
NAMESPACES=() # those we made; the first one is the hub, the second one the server's
SERVER_INSIDE=()

# room: what `scripts/demo --multicast` does.
room() {
  local number clients=$CLIENTS_MOST address=10.78.0.1 interface=eth0 disk disks=() failed=0
  apt_need "${PACKAGES_ROOM[@]}" || true
  need_programs sfdisk mkfs.vfat mkfs.ext4 mmd mcopy
  venv ""
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/targetmode-demo.XXXXXX")
  get_image

  if ! is_root; then
    warn "not root, so there are no network namespaces: one client, over the loopback interface, and no packet is lost"
    clients=1 address=127.0.0.1 interface=lo
  elif ! make_room "$clients"; then
    die "no network namespaces here; as another user than root the demo does with one client"
  fi
  for ((number = 0; number < clients; number++)); do
    room_disk "$WORK/disk-$number" # sets disk
    disks+=("$disk")
  done

  (
    for ((number = 0; number < clients; number++)); do
      sleep "$STAGGER"
      room_client "$number" "$address" "${disks[number]}" &
    done
    wait
  ) &
  CLIENTS+=("$!")
  say "asr server --source ${IMAGE##*/} --data-rate $RATE --once, and a client every $STAGGER seconds:" \
    "asr restore --source asr://$address --target ${disks[0]} --erase --noprompt"
  "${SERVER_INSIDE[@]}" asr server --source "$IMAGE" --interface "$interface" --data-rate "$RATE" --once --no-discovery
  wait "${CLIENTS[0]}" || true
  CLIENTS=()

  for ((number = 0; number < clients; number++)); do
    say "client $((number + 1)): $(tail -n 1 "$WORK/client-$number.log" | sed 's/^ *//')"
    [[ -s $WORK/client-$number.ok ]] || { indent <"$WORK/client-$number.log" >&2 && failed=1; }
  done
  ((failed == 0)) || die "a client failed"
  for ((number = 0; number < clients; number++)); do
    say "asr verify --source ${IMAGE##*/} --target ${disks[number]}, and cmp"
    asr verify --source "$IMAGE" --target "${disks[number]}" | tail -n 1
    cmp --bytes=$((IMAGE_MIB * MIB)) -- "$IMAGE" "${disks[number]}" || die "they differ"
    note "not a byte differs"
  done
  say "OK: one stream, $clients disk$( ((clients == 1)) || echo s) restored, verified, compared"
}

# room_client NUMBER ADDRESS DISK: restores in a namespace of its own, if there are any.
room_client() {
  local inside=()
  if ((${#NAMESPACES[@]} > 0)); then # with a name of its own, by which the server's table calls it
    # shellcheck disable=SC2016  # for the shell inside
    inside=(ip netns exec "${NAMESPACES[$1 + 2]}" unshare --uts sh -c 'hostname "$0" && exec "$@"' "pc-$(($1 + 1))")
  fi
  if "${inside[@]}" asr restore --source "asr://$2" --target "$3" --erase --noprompt >"$WORK/client-$1.log" 2>&1; then
    echo yes >"$WORK/client-$1.ok"
  fi
}

# room_disk FILE: a blank disk, as large as the image, so that nothing of it has to be fitted; as root, behind a loop
# device. Sets disk.
room_disk() {
  truncate -s "${IMAGE_MIB}M" "$1"
  if is_root && disk=$(attach_loop "$1"); then
    LOOPS+=("$disk")
  else
    disk=$1
  fi
}

# make_room CLIENTS: a bridge in a namespace, and on it a namespace for the server and one for each client. Packets cross
# it one by one, as on a real network, and some of them get lost.
make_room() {
  local hub=tmroom-$$-hub name number
  say "a bridge, a server and $1 clients, each in a network namespace of its own; $LOSS % of all packets are lost"
  ip netns add "$hub" || return 1
  NAMESPACES+=("$hub")
  ip -n "$hub" link add br0 type bridge mcast_snooping 0
  ip -n "$hub" link set br0 up
  for ((number = 0; number <= $1; number++)); do
    name=tmroom-$$-$number
    ip netns add "$name"
    NAMESPACES+=("$name")
    ip -n "$name" link set lo up
    ip -n "$name" link add eth0 type veth peer name "port$number" netns "$hub"
    ip -n "$name" address add "10.78.0.$((number + 1))/24" dev eth0
    ip -n "$hub" link set "port$number" master br0 up
    ip -n "$name" link set eth0 up
    if ((number == 0)); then
      SERVER_INSIDE=(ip netns exec "$name")
      "${SERVER_INSIDE[@]}" ethtool -K eth0 tx-udp-segmentation off >/dev/null
    else
      ip netns exec "$name" nft "add table inet loss;
        add chain inet loss in { type filter hook input priority 0; };
        add rule inet loss in meta l4proto udp numgen random mod 100 < $LOSS drop"
    fi
  done
}

# leave_room: ends what runs in it, and takes it down.
leave_room() {
  local name pid
  for name in "${NAMESPACES[@]}"; do
    for pid in $(ip netns pids "$name" 2>/dev/null); do
      kill -KILL "$pid" 2>/dev/null || true
    done
  done
  for pid in "${CLIENTS[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  for name in "${NAMESPACES[@]}"; do
    ip netns delete "$name" || warn "the namespace $name could not be removed"
  done
  CLIENTS=() NAMESPACES=()
}
