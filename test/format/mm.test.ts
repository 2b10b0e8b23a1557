import pb from 'protobufjs/minimal.js'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hasPrivateHugePages } from '../../lib/format/mm.ts'

const test = suite('format/mm')

const PRIVATE = 0x2
const SHARED = 0x1
const ANONYMOUS = 0x20
const HUGETLB = 0x40000

/** An mm image with areas of these flags, with fields around them as CRIU writes them. */
function image(flags: number[]): Buffer {
  const mm = pb.Writer.create().uint32(8).uint64(0x400000)
  for (const each of flags)
    mm.uint32(14 * 8 + 2)
      .fork()
      .uint32(8)
      .uint64(4096)
      .uint32(6 * 8)
      .uint32(each)
      .ldelim()
  mm.uint32(15 * 8).uint32(0)
  const body = mm.finish()
  const head = Buffer.alloc(12)
  head.writeUInt32LE(0x54564319, 0)
  head.writeUInt32LE(0x57492820, 4)
  head.writeUInt32LE(body.length, 8)
  return Buffer.concat([head, body])
}

test('private memory of huge pages is found, among other areas', () => {
  assert.is(hasPrivateHugePages(image([PRIVATE | ANONYMOUS, PRIVATE | ANONYMOUS | HUGETLB])), true)
  // The size of the pages stands in the highest bits.
  assert.is(hasPrivateHugePages(image([PRIVATE | ANONYMOUS | HUGETLB | (21 << 26)])), true)
})

test('shared huge pages, and memory of plain pages, are none', () => {
  assert.is(hasPrivateHugePages(image([])), false)
  assert.is(hasPrivateHugePages(image([PRIVATE | ANONYMOUS, SHARED | ANONYMOUS | HUGETLB])), false)
})

test('what is no such image is none: CRIU says what is wrong with it', () => {
  const whole = image([PRIVATE | ANONYMOUS | HUGETLB])
  for (let bytes = 0; bytes < whole.length - 6; bytes++) hasPrivateHugePages(whole.subarray(0, bytes))
  assert.is(hasPrivateHugePages(Buffer.alloc(0)), false)
  assert.is(hasPrivateHugePages(Buffer.concat([Buffer.alloc(4), whole.subarray(4)])), false)
})

test.run()
