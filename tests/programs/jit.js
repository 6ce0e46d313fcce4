// A little of everything that makes V8 compile, throw away and compile again; each line a result.
'use strict';
const out = (name, value) => console.log(name, value);
let seed = 12345;
const random = () => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0);

function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
out('fib', fib(23));

function matrix(n) {
  const a = new Float64Array(n * n), b = new Float64Array(n * n), c = new Float64Array(n * n);
  for (let i = 0; i < n * n; i++) {
    a[i] = random() / 4294967296;
    b[i] = Math.sin(i) + Math.exp(-i % 7);
  }
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
    let sum = 0;
    for (let k = 0; k < n; k++) sum += a[i * n + k] * b[k * n + j];
    c[i * n + j] = sum;
  }
  return c.reduce((x, y) => x + y, 0);
}
out('matrix', matrix(60));

function sieve(n) {
  const marks = new Uint8Array(n); let count = 0;
  for (let i = 2; i < n; i++) {
    if (marks[i]) continue;
    count++;
    for (let j = i * 2; j < n; j += i) marks[j] = 1;
  }
  return count;
}
out('sieve', sieve(200000));

const words = []; for (let i = 0; i < 5000; i++) words.push('w' + (random() % 1000).toString(36));
const counts = new Map(); for (const word of words) counts.set(word, (counts.get(word) || 0) + 1);
const order = (x, y) => y[1] - x[1] || (x[0] < y[0] ? -1 : 1);
out('words', [...counts].sort(order).slice(0, 5).join(' '));
out('regexp', words.join(' ').replace(/w([a-f])(\w)/g, '$2$1-').match(/(\w)\1-/g)?.length);
const data = JSON.stringify({words: words.slice(0, 300), n: [1.5, -0, 1e300]});
out('json', JSON.stringify(JSON.parse(data)).length);

// One function that sees other types as time goes by: compiled, thrown away, compiled again.
function add(x, y) { return x + y; }
let mixed = 0; for (let i = 0; i < 20000; i++) mixed = add(mixed, i);
for (let i = 0; i < 20000; i++) mixed = add(mixed, i * 0.5);
let text = ''; for (let i = 0; i < 3000; i++) text = add(text, i % 10);
out('types', mixed + ' ' + text.length);
class Shape { constructor(n) { this.n = n; } area() { return this.n; } }
class Square extends Shape { area() { return this.n * this.n; } }
class Cube extends Square { area() { return 6 * super.area(); } }
let area = 0; const kinds = [Shape, Square, Cube];
for (let i = 0; i < 30000; i++)
  area += new kinds[i % (1 + Math.floor(i / 10000))](i % 100).area();
out('shapes', area);
let caught = 0;
for (let i = 0; i < 3000; i++) {
  try {
    if (i % 3 == 0) throw new Error(i);
    null.x;
  } catch (e) {
    caught += e.message.length;
  }
}
out('exceptions', caught);
let big = 1n; for (let i = 1n; i < 300n; i++) big *= i;
out('bigint', String(big).length + ' ' + big % 1000000007n);
function* numbers() { for (let i = 0; ; i++) yield i; }
let total = 0; for (const n of numbers()) { if (n > 20000) break; total += n; }
out('generator', total);

// (func (param i32) (result i32) a sum of squares in a loop)
const wasm = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0,
  7, 5, 1, 1, 102, 0, 0, 10, 30, 1, 28, 1, 1, 127, 3, 64, 32, 0, 32, 0, 108, 32, 1, 106, 33, 1,
  32, 0, 65, 1, 107, 34, 0, 13, 0, 11, 32, 1, 11]);
const f = new WebAssembly.Instance(new WebAssembly.Module(wasm)).exports.f;
let squares = 0; for (let i = 1; i < 300; i++) squares = (squares + f(i * 10)) | 0;
out('wasm', squares);

// Code that is made, run and dropped.
let made = 0;
for (let i = 0; i < 300; i++) {
  const g = new Function('x',
    `let s = ${i}; for (let k = 0; k < 200; k++) s = (s * x + k) % 65521; return s;`);
  for (let k = 0; k < 5; k++) made += g(k + 2);
}
out('made', made);
