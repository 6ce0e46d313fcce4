"""In a network namespace: a bridge with three taps, a guest on the first one, its clones on the others.
Prints as JSON what the clones' command said, and who spoke on their taps.

    clone_peer.py LODGE ENGINE FOLDER SCRIPT [OPTION...]
"""
import json
import os
import select
import socket
import subprocess
import sys
import threading

ETH_P_ALL = 3
TAPS = ["t1", "t2"]


def listen(tap, heard, over):
    """Sources of the frames that come out of a tap's guest: what the bridge sends there is of no
    interest."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as packets:
        packets.bind((tap, ETH_P_ALL))
        while not over.is_set():
            if select.select([packets], [], [], 0.1)[0]:
                frame, about = packets.recvfrom(65536)
                if about[2] != socket.PACKET_OUTGOING:
                    heard.add(frame[6:12].hex(":"))


def main():
    lodge, engine, folder, script, *options = sys.argv[1:]
    os.chdir(folder)
    commands = ["link add br0 type bridge", "link set br0 up", "addr add 10.99.0.1/24 dev br0"]
    for tap in ["t0", *TAPS]:
        commands += [f"tuntap add {tap} mode tap", f"link set {tap} master br0 up"]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)
    first = subprocess.Popen([lodge, "run", "--engine", engine, "--name", "first", "--net",
                              f"tap=t0{''.join(options)}", "--", "sh", "-c",
                              "ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up; "
                              "ping -c 1 10.99.0.1 >/dev/null; echo ready; sleep 1000"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"ready\n"
    subprocess.run([lodge, "snapshot", "first", "snap"], check=True)
    over = threading.Event()
    heard = {tap: set() for tap in TAPS}
    threads = [threading.Thread(target=listen, args=(tap, heard[tap], over)) for tap in TAPS]
    for thread in threads:
        thread.start()
    result = subprocess.run([lodge, "clone", "--engine", engine, "--tap", "t{n}", "snap", "c1",
                             "c2", "--", "sh", "-c", script], capture_output=True, text=True,
                            timeout=120, check=False)
    over.set()
    for thread in threads:
        thread.join()
    first.terminate()
    first.wait(timeout=20)
    solo = subprocess.Popen([lodge, "clone", "--engine", engine, "--tap", "t1", "snap", "solo"],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert b"is ready" in solo.stdout.readline()
    subprocess.run([lodge, "snapshot", "solo", "again"], check=True)
    solo.terminate()
    solo.wait(timeout=20)
    again = subprocess.run([lodge, "restore", "--engine", engine, "again", "--", "hostname"],
                           capture_output=True, text=True, timeout=120, check=True)
    print(json.dumps({"status": result.returncode, "out": result.stdout, "errors": result.stderr,
                      "again": again.stdout,
                      "heard": {tap: sorted(macs) for tap, macs in heard.items()}}))


if __name__ == "__main__":
    main()
