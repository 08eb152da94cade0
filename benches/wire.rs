//! What the wire costs per packet: `cargo bench --bench wire`. Allocations are counted; a query's parse and a
//! template's write must show none.

use divan::{AllocProfiler, Bencher, black_box};
use outgate::name::Name;
use outgate::record::{ExtendedError, Question, Rcode, Record, RecordType};
use outgate::time::Ttl;
use outgate::wire::{Canonical, Template, encode_query, parse, parse_message, refusal_soa, write_refusal};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// `api.stripe.example A`, mixed case, with EDNS: what a client sends.
fn query() -> (Question, Vec<u8>) {
    let question = Question { name: Name::parse("api.stripe.example").unwrap_or(Name::root()), kind: RecordType::A };
    let mut packet = Vec::new();
    let mut upper = false;
    encode_query(&mut packet, 4711, &question, true, || {
        upper = !upper;
        upper
    });
    (question, packet)
}

/// A CNAME and `count` addresses behind it.
fn template(question: &Question, count: u8) -> Template {
    let edge = question.name.child(b"edge").unwrap_or(Name::root());
    let cname = Record {
        name: question.name.clone(),
        kind: RecordType::CNAME,
        ttl: Ttl::from_wire(300),
        data: edge.as_wire().into(),
    };
    let records: Vec<Record> = std::iter::once(cname)
        .chain((0..count).map(|last| Record::of_address(edge.clone(), Ttl::from_wire(300), [192, 0, 2, last].into())))
        .collect();
    Template::new(question, Rcode::NOERROR, false, &records, None, None)
}

#[divan::bench]
fn parse_query(bencher: Bencher<'_, '_>) {
    let (_, packet) = query();
    bencher.bench_local(|| parse(black_box(&packet), &mut Canonical::new()).is_ok());
}

/// The floor: what a copy of such a packet costs.
#[divan::bench]
fn copy_query(bencher: Bencher<'_, '_>) {
    let (_, packet) = query();
    let mut out = Vec::with_capacity(2048);
    bencher.bench_local(|| {
        out.clear();
        out.extend_from_slice(black_box(&packet));
        out.len()
    });
}

#[divan::bench(args = [1, 4, 16])]
fn parse_query_and_write_template(bencher: Bencher<'_, '_>, count: u8) {
    let (question, packet) = query();
    let template = template(&question, count);
    let mut out = Vec::with_capacity(2048);
    bencher.bench_local(|| {
        out.clear();
        parse(black_box(&packet), &mut Canonical::new())
            .map(|query| template.write(&mut out, &query.echo, Ttl::from_wire(60), 1232).len)
            .ok()
    });
}

#[divan::bench]
fn parse_query_and_write_refusal(bencher: Bencher<'_, '_>) {
    let (_, packet) = query();
    let ede = ExtendedError::new(ExtendedError::BLOCKED, "no rule allows this name");
    let mut out = Vec::with_capacity(2048);
    bencher.bench_local(|| {
        out.clear();
        let mut name = Canonical::new();
        let query = parse(black_box(&packet), &mut name).ok()?;
        Some(write_refusal(&mut out, &query.echo, Rcode::NXDOMAIN, Some(&ede), 1232).len)
    });
}

#[divan::bench(args = [1, 4, 16])]
fn encode_template(bencher: Bencher<'_, '_>, count: u8) {
    let (question, _) = query();
    bencher.bench_local(|| template(black_box(&question), count));
}

#[divan::bench(args = [1, 4, 16])]
fn read_upstream_message(bencher: Bencher<'_, '_>, count: u8) {
    let (question, packet) = query();
    let mut out = Vec::new();
    if let Ok(query) = parse(&packet, &mut Canonical::new()) {
        template(&question, count).write(&mut out, &query.echo, Ttl::from_wire(60), 1232);
    }
    bencher.bench_local(|| parse_message(black_box(&out)).is_ok());
}

/// An NXDOMAIN with its SOA.
#[divan::bench]
fn read_negative_message(bencher: Bencher<'_, '_>) {
    let (question, packet) = query();
    let soa = refusal_soa(&question.name);
    let mut out = Vec::new();
    if let Ok(query) = parse(&packet, &mut Canonical::new()) {
        Template::new(&question, Rcode::NXDOMAIN, false, &[], Some(&soa), None).write(
            &mut out,
            &query.echo,
            soa.ttl,
            1232,
        );
    }
    bencher.bench_local(|| parse_message(black_box(&out)).is_ok());
}
