import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { digest, digestWords, hex64 } from '../../lib/format/digest.ts'

const test = suite('format/digest')

const allBytes = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))

function of(...parts: Uint8Array[]): string {
  const sum = digest()
  for (const part of parts) sum.update(part)
  return hex64(sum.finish())
}

test('is XXH64 with seed 0', () => {
  assert.is(of(), 'ef46db3751d8e999')
  assert.is(of(Buffer.from('a')), 'd24ec4f1a98c6e5b')
  assert.is(of(Buffer.from('abc')), '44bc2cf5ad770999')
  assert.is(of(allBytes), '1facbe8406cd904b')
})

test('does not depend on how the bytes are cut', () => {
  for (let cut = 0; cut <= 256; cut++)
    assert.is(of(allBytes.subarray(0, cut), allBytes.subarray(cut)), '1facbe8406cd904b')
})

test('digests do not share state', () => {
  const [one, two] = [digest(), digest()]
  one.update(Buffer.from('a'))
  two.update(Buffer.from('abc'))
  assert.is(hex64(one.finish()), 'd24ec4f1a98c6e5b')
  assert.is(hex64(two.finish()), '44bc2cf5ad770999')
})

test('is shown with its leading zeros', () => {
  assert.is(hex64(0n), '0000000000000000')
  assert.is(hex64(0xabcn), '0000000000000abc')
  assert.is(hex64(2n ** 64n - 1n), 'ffffffffffffffff')
})

test('what nobody looked at is said to be so', () => {
  const none = { images: [{ digest: 0n }, { digest: 0n }], digest: 5n }
  assert.is(digestWords(none), 'none: only sizes were compared')
  assert.is(digestWords({ images: [{ digest: 0n }, { digest: 1n }], digest: 5n }), '0000000000000005')
})

test.run()
