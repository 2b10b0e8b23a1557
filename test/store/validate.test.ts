import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { pageFlag } from '../../lib/format/pagemap.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { checkWhole } from '../../lib/store/validate.ts'
import { throwsFault } from '../expect.ts'
import { type Images, inventory, pagemap, part, put } from '../support/rounds.ts'

const test = suite('store/validate')
const { lazy, parent, present } = pageFlag
const preDump = Buffer.from('16313158040000000802' + '4801', 'hex')

function check(images: Images): void {
  const sink = new MemorySnapshot(new Pool(2 ** 24))
  put(sink, images)
  try {
    for (const _ of checkWhole(sink.images));
  } finally {
    sink.drop()
  }
}

test('a full dump is whole, and so are images that nobody here understands', () => {
  const whole = part('a', [
    [0, 3, present],
    [5, 1, lazy | present],
    [9, 1, lazy],
  ])
  check({ ...whole, 'inventory.img': inventory })
  check({ 'inventory.img': Buffer.alloc(2 ** 17) })
  check({ 'inventory.img': inventory, 'pagemap-1.img': Buffer.from('a format of the future') })
  check({ ...whole, 'inventory.img': Buffer.from('16313158020000000809', 'hex') })
  check({})
})

test('pages in a parent that is not here are refused, of a process or of shared memory, also far behind others', () => {
  const many = Array.from({ length: 20_000 }, (_, at): [number, number, number] => [2 * at, 1, present])
  for (const name of ['pagemap-12.img', 'pagemap-shmem-3.img']) {
    const fault = throwsFault('FAILED_DUMP', () =>
      check({ [name]: pagemap(1, [...many, [99_999, 1, parent]]), 'inventory.img': inventory }),
    )
    assert.match(fault.message, `${name} has pages in a parent, which did not come here`)
    assert.match(String(fault.hint), 'pre-copy')
  }
})

test('a task with memory and without a pagemap is refused: its pages went elsewhere', () => {
  const whole = { ...part('a', [[0, 1, present]]), 'inventory.img': inventory }
  check({ ...whole, 'mm-7.img': Buffer.alloc(9) })
  const fault = throwsFault('FAILED_DUMP', () =>
    check({ ...whole, 'mm-7.img': Buffer.alloc(9), 'mm-8.img': Buffer.alloc(9) }),
  )
  assert.match(fault.message, 'there is no pagemap-8.img')
})

test('a pre-dump is refused: it has no process', () => {
  const fault = throwsFault('FAILED_DUMP', () => check({ ...part('a', [[0, 1, present]]), 'inventory.img': preDump }))
  assert.match(fault.message, 'a pre-dump has pages and no process')
})

test.run()
