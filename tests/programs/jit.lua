-- What LuaJIT makes traces of; each line a result.
local bit = require 'bit'
local function sieve(n)
  local marks, count = {}, 0
  for i = 2, n do
    if not marks[i] then
      count = count + 1
      for j = i * 2, n, i do marks[j] = true end
    end
  end
  return count
end
print('sieve', sieve(300000))
local sum = 0.0
for i = 1, 2000000 do sum = sum + math.sqrt(i) / (i % 7 + 1) end
print('float', string.format('%.17g', sum))
local hash = 5381
for i = 1, 3000000 do hash = bit.bxor(bit.lshift(hash, 5) + hash, i) end
print('hash', bit.tobit(hash))
local ffi = require 'ffi'
local array = ffi.new('int32_t[?]', 100000)
for k = 1, 20 do for i = 0, 99999 do array[i] = array[i] * 3 + i * k end end
local total = 0
for i = 0, 99999 do total = bit.bxor(total, array[i]) end
print('ffi', total)
local words = {}
for i = 1, 20000 do words[#words + 1] = tostring(i * 7919 % 10007) end
table.sort(words)
print('words', words[1], words[10000], #table.concat(words, ' '))
local made = 0
for i = 1, 500 do
  local f = loadstring('local x = ... for i = 1, 200 do x = (x * 31 + ' .. i ..
                       ' + i) % 65521 end return x')
  for k = 1, 4 do made = made + f(k) end
end
print('made', made)
local n = 0
for i = 1, 20000 do
  local ok, e = pcall(function() if i % 3 == 0 then error({i}) end return i end)
  n = n + (ok and e or e[1] * 2)
end
print('errors', n)
