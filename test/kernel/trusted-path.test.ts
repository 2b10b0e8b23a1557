import { chmodSync, chownSync, lchownSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { trustedPath, userName } from '../../lib/kernel/trusted-path.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'

const test = suite<{ dir: string; remove: () => void }>('kernel/trusted-path')

test.before.each((context) => {
  const { path, remove } = temporary()
  Object.assign(context, { dir: path, remove })
})
test.after.each(({ remove }) => remove())

const isRoot = process.geteuid?.() === 0
const NOBODY = 65534
const otherwise = 'choose another -D DIR'

function made(path: string, mode = 0o700): string {
  mkdirSync(path)
  chmodSync(path, mode)
  return path
}

test('a directory of ours is taken, below a sticky one too, its links resolved', ({ dir }) => {
  const place = made(join(dir, 'place'), 0o755)
  made(join(place, 'below'), 0o700)
  symlinkSync('place', join(dir, 'link'))
  symlinkSync('../link/below/..', join(place, 'round'))
  symlinkSync(place, join(dir, 'absolute'))
  for (const path of [place, `${place}/`, `${dir}/./place/below/..`, join(dir, 'link'), join(dir, 'absolute')]) {
    assert.is(trustedPath(path, { otherwise }), place, path)
  }
  assert.is(trustedPath(join(dir, 'absolute', 'round', 'below'), { otherwise }), join(place, 'below'))
  assert.is(trustedPath('/', { otherwise }), '/')
  made(join(dir, 'sticky'), 0o1777)
  made(join(dir, 'sticky', 'ours'))
  assert.is(trustedPath(join(dir, 'sticky', 'ours'), { otherwise }), join(dir, 'sticky', 'ours'))
  assert.is(trustedPath(join(dir, 'sticky'), { otherwise, parent: true }), join(dir, 'sticky'))
})

test('a part that its group or everybody can write to is named, wherever it is', ({ dir }) => {
  for (const [name, mode, who] of [
    ['group', 0o770, 'its group'],
    ['all', 0o777, 'everybody'],
    ['only-all', 0o702, 'everybody'],
  ] as const) {
    const part = made(join(dir, name), mode)
    made(join(part, 'below'))
    symlinkSync(join(name, 'below'), join(dir, `to-${name}`))
    for (const path of [part, join(part, 'below'), join(dir, `to-${name}`)]) {
      for (const parent of [false, true]) {
        const fault = throwsFault('USAGE', () => trustedPath(path, { otherwise, parent }), path)
        assert.is(fault.message, `${part} can be written by ${who}`)
        assert.is(fault.hint, `chmod go-w ${part}, or ${otherwise}`)
      }
    }
  }
})

test('a sticky directory itself is none of ours', ({ dir }) => {
  const sticky = made(join(dir, 'sticky'), 0o1777)
  const fault = throwsFault('USAGE', () => trustedPath(sticky, { otherwise }))
  assert.is(fault.message, `${sticky} can be written by everybody`)
  assert.is(fault.hint, `name one below it, such as ${sticky}/ferry`)
})

test('what is not there is MISSING, and so is where links lead in a circle', ({ dir }) => {
  assert.is(
    throwsFault('MISSING', () => trustedPath(join(dir, 'no', 'where'), { otherwise })).message,
    `there is no ${dir}/no`,
  )
  symlinkSync('nowhere', join(dir, 'dangling'))
  assert.match(throwsFault('MISSING', () => trustedPath(join(dir, 'dangling'), { otherwise })).message, /nowhere/)
  symlinkSync('two', join(dir, 'one'))
  symlinkSync('one', join(dir, 'two'))
  assert.match(throwsFault('MISSING', () => trustedPath(join(dir, 'one'), { otherwise })).message, /circle/)
})

test('who can exchange our program is trusted with the path to it, and with nothing beside', ({ dir }) => {
  const checkout = made(join(dir, 'checkout'), 0o777)
  const program = join(made(join(checkout, 'lib')), 'program.ts')
  writeFileSync(program, '')
  const beside = join(made(join(checkout, 'other')), 'criu')
  writeFileSync(beside, '', { mode: 0o700 })
  throwsFault('USAGE', () => trustedPath(beside, { otherwise }))
  assert.is(trustedPath(beside, { otherwise, program }), beside)
  chmodSync(beside, 0o722)
  assert.match(throwsFault('USAGE', () => trustedPath(beside, { otherwise, program })).message, /criu can be written/)
})

if (isRoot) {
  test('a part or a link of another user is named with him, also where he can write nothing', ({ dir }) => {
    const place = made(join(dir, 'place'), 0o755)
    const below = made(join(place, 'below'), 0o755)
    symlinkSync('place', join(dir, 'link'))
    for (const part of [place, below]) {
      chownSync(part, NOBODY, 0)
      const fault = throwsFault('USAGE', () => trustedPath(below, { otherwise }), part)
      assert.is(fault.message, `${part} belongs to ${userName(NOBODY)}`)
      assert.is(fault.hint, otherwise)
      chownSync(part, 0, 0)
    }
    chmodSync(place, 0o1755)
    chownSync(place, NOBODY, 0)
    throwsFault('USAGE', () => trustedPath(place, { otherwise, parent: true }), 'his sticky directory')
    chownSync(place, 0, 0)
    lchownSync(join(dir, 'link'), NOBODY, 0)
    const led = throwsFault('USAGE', () => trustedPath(join(dir, 'link', 'below'), { otherwise }))
    assert.is(led.message, `${dir}/link belongs to ${userName(NOBODY)}`)
  })

  test('the owner of our program is trusted', ({ dir }) => {
    const program = join(dir, 'program.ts')
    const criu = join(dir, 'criu')
    for (const file of [program, criu]) writeFileSync(file, '')
    chownSync(criu, NOBODY, 0)
    throwsFault('USAGE', () => trustedPath(criu, { otherwise, program }))
    chownSync(program, NOBODY, 0)
    assert.is(trustedPath(criu, { otherwise, program }), criu)
  })
}

test('a user is named as far as he is known', () => {
  assert.is(userName(0), 'user 0 (root)')
  assert.is(userName(3_999_999), 'user 3999999')
})

test.run()
