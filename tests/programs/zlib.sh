# Builds zlib from its source in ./zlib.tar, tests it, and says what came out.
set -e
mkdir -p w && cd w && tar xf ../zlib.tar && cd zlib-*
./configure >/dev/null && make -j2 >log 2>&1 || { tail -20 log; exit 1; }
make test 2>&1 | grep -a 'test OK'
sha256sum libz.a libz.so.*.*.* example minigzip adler32.o inflate.o deflate.o
seq 1 60000 | ./minigzip -9 | sha256sum
seq 1 60000 | ./minigzip -1 | ./minigzip -d | sha256sum
