# Digests, ciphers, signatures of openssl; lines with RANDOM differ from run to run.
# Everything three times: with all that the CPU offers, without AES and carry-less multiplication,
# and without any vector instruction that may be left out.
set -e
for mask in "" "~0x200000200000000" "~0x200000200000000:~0x20000528"; do
[ -z "$mask" ] || export OPENSSL_ia32cap="$mask"
for d in md5 sha1 sha224 sha256 sha384 sha512 sha512-256 sha3-256 sha3-512 shake256 blake2b512 \
         blake2s256 sm3 ripemd160; do
    openssl dgst -r -$d data
done
K=00112233445566778899aabbccddeeff0123456789abcdef0011223344556677
IV=0f1e2d3c4b5a69788796a5b4c3d2e1f0
for c in aes-128-cbc aes-192-cbc aes-256-cbc aes-128-ctr aes-256-ctr aes-256-cfb aes-256-ofb \
         aes-128-ecb camellia-256-cbc camellia-128-ctr aria-256-ctr des-ede3-cbc chacha20 \
         sm4-cbc; do
    case $c in
    *128*|sm4*) k=$(echo $K | cut -c 1-32) ;;
    *192*|des*) k=$(echo $K | cut -c 1-48) ;;
    *) k=$K ;;
    esac
    case $c in
    *-ecb) iv= ;;
    des*) iv="-iv $(echo $IV | cut -c 1-16)" ;;
    *) iv="-iv $IV" ;;
    esac
    openssl enc -$c -K $k $iv -in data -out data.enc
    openssl dgst -r -sha256 data.enc
    openssl enc -d -$c -K $k $iv -in data.enc | cmp - data
done
openssl kdf -keylen 40 -kdfopt digest:SHA256 -kdfopt pass:word -kdfopt salt:pepper \
    -kdfopt iter:2000 PBKDF2
openssl kdf -keylen 40 -kdfopt pass:word -kdfopt salt:pepper -kdfopt n:1024 -kdfopt r:8 \
    -kdfopt p:2 SCRYPT
for m in "-macopt digest:SHA384 -macopt hexkey:$K HMAC" "-macopt hexkey:$K POLY1305" \
         "-cipher AES-256-CBC -macopt hexkey:$K CMAC" \
         "-cipher AES-256-GCM -macopt hexkey:$K -macopt hexiv:${IV%????????} GMAC" \
         "-macopt hexkey:$(echo $K | cut -c 1-32) SIPHASH"; do
    openssl mac -in data $m
done
for key in rsa2048 rsa3072; do
    openssl dgst -sha256 -sign $key -out sig data
    openssl dgst -r -sha256 sig
    openssl dgst -sha256 -prverify $key -signature sig data
    openssl pkeyutl -encrypt -inkey $key -in small -out small.enc
    openssl pkeyutl -decrypt -inkey $key -in small.enc | cmp - small
done
openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sign rsa2048 -out sig data
echo RANDOM pss $(base64 -w0 sig)
for key in p256 p384 p521 k256; do
    openssl dgst -sha256 -sign $key -out sig data
    openssl dgst -sha256 -prverify $key -signature sig data
    echo RANDOM $key $(base64 -w0 sig)
    openssl pkeyutl -derive -inkey $key -peerkey $key.pub | openssl dgst -r -sha256
done
for key in ed25519 ed448; do
    openssl pkeyutl -sign -inkey $key -rawin -in small | openssl dgst -r -sha256
done
for key in x25519 x448; do
    openssl pkeyutl -derive -inkey $key -peerkey $key.pub | openssl dgst -r -sha256
done
openssl prime 170141183460469231731687303715884105727 170141183460469231731687303715884105729
done
